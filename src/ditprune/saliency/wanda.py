"""Weight times the norm of its input."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float, Float32
from torch import Tensor

from ditprune.saliency.power import power_score
from ditprune.statistics.column_norm import ColumnNorm


@dataclass(frozen=True)
class Wanda:
    """I_ij = |W_ij| · ‖X_j‖₂. Source: Sun et al., arXiv 2306.11695; arXiv 2607.00927, Eq. 4."""

    name: ClassVar[str] = "wanda"
    is_rowwise: ClassVar[bool] = True
    needs: ClassVar[frozenset[type]] = frozenset({ColumnNorm})

    def __call__(
        self, weight: Float[Tensor, "out in"], norm: Float[Tensor, " in"] | None
    ) -> Float32[Tensor, "out in"]:
        return power_score(weight, norm, 1, 1)
