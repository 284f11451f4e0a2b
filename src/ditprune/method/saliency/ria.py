"""Relative importance and activations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from ditprune.method.saliency.power import check_powers, power_, power_score
from ditprune.method.statistics.column_norm import ColumnNorm


@dataclass(frozen=True)
class RIA:
    """I_ij = (|W_ij| / Σ_i |W_ij| + |W_ij| / Σ_j |W_ij|) · ‖X_j‖₂^a, a = activation_power.

    Source: Zhang et al., arXiv 2402.04902. A column or a row of zeros contributes zero.
    """

    activation_power: float = 0.5
    name: ClassVar[str] = "ria"
    is_product: ClassVar[bool] = True
    needs: ClassVar[frozenset[type]] = frozenset({ColumnNorm})

    def __post_init__(self) -> None:
        check_powers(activation_power=self.activation_power)

    def __call__(
        self, weight: Float[Tensor, "out in"], norm: Float[Tensor, " in"]
    ) -> Float[Tensor, "out in"]:
        magnitude_OI = power_score(weight, None, 1, 0)
        column_I, row_O1 = magnitude_OI.sum(0), magnitude_OI.sum(1, keepdim=True)
        if magnitude_OI.dtype != torch.float64 and not _are_finite(column_I, row_O1):
            return self(weight.double(), norm)
        norm_I = norm.to(magnitude_OI.device, magnitude_OI.dtype, copy=True)
        relative_OI = magnitude_OI / _or_one(column_I) + magnitude_OI / _or_one(row_O1)
        return relative_OI.mul_(power_(norm_I, self.activation_power))


def _are_finite(*sums: Tensor) -> bool:
    return all(bool(some.isfinite().all()) for some in sums)


def _or_one(sums: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """The sums to divide by: those of zeros are 1."""
    return sums.masked_fill(sums == 0, 1)
