"""What a reconstruction is given and gives back; it is never worse than zeros."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Float32
from torch import Tensor

from ditprune.method.masks import keep_best


@dataclass(frozen=True)
class Choice:
    """Groups of consecutive weights, as a granularity's `group_shape` and `num_keep` give them.

    Args:
        group_size: weights in each group; the groups cover the layer row by row.
        num_keep: of each group.
    """

    group_size: int
    num_keep: int

    def __call__(
        self, scores: Float32[Tensor, "out in"], share: float = 1.0
    ) -> Bool[Tensor, "out in"]:
        """The mask by these scores; with a `share` below 1 only that share is removed as yet."""
        num_remove = round(share * (self.group_size - self.num_keep))
        groups = scores.reshape(-1, self.group_size)
        return keep_best(groups, self.group_size - num_remove).reshape(scores.shape)

    def splits_into(self, num_columns: int) -> bool:
        """Whether a run of so many columns, from a multiple of it, holds whole groups only."""
        return num_columns % self.group_size == 0


@dataclass(frozen=True, eq=False)
class LayerResult:
    """A layer's new weight and how it came about.

    Args:
        weight: float32, zero outside `keep`.
        keep: True stays.
        damping: what was added to the unit diagonal of the normalised Gram; 0 where nothing was.
        error: ‖(W − W')X‖² over the calibration inputs.
    """

    weight: Float32[Tensor, "out in"]
    keep: Bool[Tensor, "out in"]
    damping: float
    error: float


def best_rows(
    weight_OI: Float[Tensor, "out in"],
    update_OI: Float32[Tensor, "out in"],
    keep_OI: Bool[Tensor, "out in"],
    error_O: Float32[Tensor, " out"],
    error_of_zeros_O: Float32[Tensor, " out"],
    damping: float = 0.0,
) -> LayerResult:
    """Take the update of every output channel that gains by it, and zeros elsewhere."""
    gains_O = error_O <= error_of_zeros_O  # False for NaN too
    new_OI = torch.where(gains_O[:, None], update_OI, weight_OI.float() * keep_OI)
    error = torch.where(gains_O, error_O, error_of_zeros_O).sum().item()
    return LayerResult(new_OI, keep_OI, damping, error)


def row_errors(
    difference_OI: Float32[Tensor, "out in"], gram_II: Float[Tensor, "in in"]
) -> Float32[Tensor, " out"]:
    """‖D_o X‖² = D_o (XᵀX) D_oᵀ of every output channel."""
    return (difference_OI @ gram_II.float()).mul_(difference_OI).sum(1).clamp_min_(0)


@dataclass(frozen=True)
class Nothing:
    """W' = W on the mask; a `Choice` ranks by |W_ij| ‖X_j‖₂."""

    name: ClassVar[str] = "none"
    needs: ClassVar[frozenset[type]] = frozenset()

    def __call__(
        self,
        weight: Float[Tensor, "out in"],
        mask: Bool[Tensor, "out in"] | Choice,
        gram: Float[Tensor, "in in"],
    ) -> LayerResult:
        if isinstance(mask, Choice):
            mask = mask(weight.float().abs() * gram.diagonal().sqrt().float())
        error = row_errors(weight.float() * ~mask, gram)
        return best_rows(weight, weight.float() * mask, mask, error, error)
