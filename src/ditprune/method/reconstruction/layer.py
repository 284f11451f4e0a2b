"""What is a reconstruction given, and what does it give back? It is never worse than zeros."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Float32
from torch import Tensor

from ditprune.errors import StatisticsError
from ditprune.method.masks import keep_best


@dataclass(frozen=True)
class Choice:
    """Groups in which a reconstruction chooses its own mask.

    Args:
        group_size: consecutive weights in each group; the groups cover the layer row by row.
        num_keep: weights that stay in each group.
    """

    group_size: int
    num_keep: int

    def __call__(
        self, scores: Float32[Tensor, "out in"], share: float = 1.0
    ) -> Bool[Tensor, "out in"]:
        """The mask by these scores; a `share` below 1 removes only that share of the removal."""
        num_remove = round(share * (self.group_size - self.num_keep))
        groups = scores.reshape(-1, self.group_size)
        return keep_best(groups, self.group_size - num_remove).reshape(scores.shape)

    def splits_into(self, num_columns: int) -> bool:
        """Whether each block of this many columns holds whole groups only."""
        return num_columns % self.group_size == 0


@dataclass(frozen=True, eq=False)
class Normalised:
    """The least-squares problem of a layer in units where every input channel has norm one.

    It holds W_ij ‖X_j‖ and the Gram of X_j / ‖X_j‖. Channels differ by orders of magnitude; in
    these units one damping suits all of them, |W_ij| is Wanda's score, and rounding in float32 is
    harmless.

    Args:
        weight: zero in columns whose input is always zero, so that they go first.
        gram: unit diagonal, but zero where the input is always zero.
        norm: ‖X_j‖; zero where the input is always zero.
    """

    weight: Float32[Tensor, "out in"]
    gram: Float32[Tensor, "in in"]
    norm: Float32[Tensor, " in"]

    def restore(
        self,
        update_OI: Float32[Tensor, "out in"],
        dense_OI: Float[Tensor, "out in"],
        keep_OI: Bool[Tensor, "out in"],
    ) -> Float32[Tensor, "out in"]:
        """The update in the layer's own units; kept weights of silent inputs stay as they were."""
        silent_I = self.norm == 0
        raw_OI = update_OI / torch.where(silent_I, torch.ones_like(self.norm), self.norm)
        return torch.where(silent_I, dense_OI.float(), raw_OI) * keep_OI


def normalise(weight_OI: Float[Tensor, "out in"], gram_II: Float[Tensor, "in in"]) -> Normalised:
    """The problem of one layer. Raises StatisticsError for NaN, Inf or a negative square."""
    diagonal_I = gram_II.diagonal().float()
    if not gram_II.isfinite().all() or (diagonal_I < 0).any():
        raise StatisticsError(
            "the Gram of a layer's inputs holds NaN, Inf or a negative square, expected XᵀX of "
            "finite inputs; look at the calibration calls, or calibrate in float32"
        )
    norm_I = diagonal_I.sqrt()
    inverse_I = torch.where(norm_I > 0, 1 / norm_I, torch.zeros_like(norm_I))
    unit_II = gram_II.float() * inverse_I[:, None] * inverse_I
    return Normalised(weight_OI.float() * norm_I, unit_II, norm_I)


@dataclass(frozen=True, eq=False)
class LayerResult:
    """The new weight of a layer, and its error.

    Args:
        weight: float32, zero outside `keep`.
        keep: True for weights that stay.
        damping: added to the unit diagonal of the normalised Gram; 0 if nothing was added.
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
    """Take the update of each output channel that it helps; only zero weights in the others."""
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
