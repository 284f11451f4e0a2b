"""The squared transformation on weights: DiT-Pruning's saliency."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ditprune.saliency.power import Power


@dataclass(frozen=True)
class STW(Power):
    """I_ij = |W_ij|² · ‖X_j‖₂. Source: arXiv 2607.00927, Eq. 7."""

    weight_power: float = 2
    activation_power: float = 1
    name: ClassVar[str] = "stw"
