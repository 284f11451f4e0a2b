"""Relative importance and activations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Float32
from torch import Tensor

from ditprune.method.saliency.power import check_powers, power_, power_score
from ditprune.method.statistics.column_norm import ColumnNorm

_SMALLEST = torch.finfo(torch.float32).tiny


@dataclass(frozen=True)
class RIA:
    """I_ij = (|W_ij| / Σ_i |W_ij| + |W_ij| / Σ_j |W_ij|) · ‖X_j‖₂^a, a = activation_power.

    Source: Zhang et al., arXiv 2402.04902. A column or a row of zeros contributes zero.
    """

    activation_power: float = 0.5
    name: ClassVar[str] = "ria"
    needs: ClassVar[frozenset[type]] = frozenset({ColumnNorm})

    def __post_init__(self) -> None:
        check_powers(activation_power=self.activation_power)

    def __call__(
        self, weight: Float[Tensor, "out in"], norm: Float[Tensor, " in"]
    ) -> Float32[Tensor, "out in"]:
        magnitude_OI = power_score(weight, None, 1, 0)
        column_I = magnitude_OI.sum(0).clamp_min_(_SMALLEST)
        row_O1 = magnitude_OI.sum(1, keepdim=True).clamp_min_(_SMALLEST)
        norm_I = norm.to(magnitude_OI.device, torch.float32, copy=True)
        relative_OI = magnitude_OI / column_I + magnitude_OI / row_O1
        return relative_OI.mul_(power_(norm_I, self.activation_power))
