"""What is a reconstruction given, and what does it give back? It is never worse than zeros."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Float32
from torch import Tensor

from ditprune.errors import StatisticsError
from ditprune.method.masks import keep_best

_TINY = torch.finfo(torch.float32).tiny
_LARGEST_EXPONENT = 40  # of two; the squares of numbers below, and their sums, fit float32


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
    harmless. Weights whose squares float32 does not hold are scaled by a power of two.

    Args:
        weight: zero in columns whose input is always zero, so that they go first.
        gram: unit diagonal, but zero where the input is always zero.
        norm: ‖X_j‖; zero where the input is always zero.
        exponent: the weights are as many times 2 smaller; 0 for all but tiny and huge ones.
    """

    weight: Float32[Tensor, "out in"]
    gram: Float32[Tensor, "in in"]
    norm: Float32[Tensor, " in"]
    exponent: int = 0

    def restore(
        self,
        update_OI: Float32[Tensor, "out in"],
        dense_OI: Float[Tensor, "out in"],
        keep_OI: Bool[Tensor, "out in"],
    ) -> Float32[Tensor, "out in"]:
        """The update in the layer's own units; kept weights of silent inputs stay as they were."""
        silent_I = self.norm == 0
        raw_OI = update_OI / torch.where(silent_I, torch.ones_like(self.norm), self.norm)
        if self.exponent:
            raw_OI = (_wide(raw_OI) * 2.0**self.exponent).float().to(raw_OI.device)
        return torch.where(silent_I, dense_OI.float(), raw_OI) * keep_OI

    def error(self, error: float) -> float:
        """An error of the scaled weights in the layer's own units."""
        return math.ldexp(error, 2 * self.exponent)


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
    largest = (_wide(weight_OI.abs().amax(0)) * _wide(norm_I)).max().item()
    exponent = math.frexp(largest)[1] if math.isfinite(largest) else 0
    if abs(exponent) <= _LARGEST_EXPONENT:
        return Normalised(weight_OI.float() * norm_I, unit_II, norm_I)
    scaled_OI = (_wide(weight_OI) * _wide(norm_I) * 2.0**-exponent).float()
    return Normalised(scaled_OI.to(norm_I.device), unit_II, norm_I, exponent)


def _wide(values: Tensor) -> Tensor:
    """In float64, on the CPU where a device has none."""
    return (values.cpu() if values.device.type == "mps" else values).double()


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


Solve = Callable[[Tensor | Choice], LayerResult]  # of one layer, for a mask or a choice


def best_rows(
    weight_OI: Float[Tensor, "out in"],
    update_OI: Float32[Tensor, "out in"],
    keep_OI: Bool[Tensor, "out in"],
    error_O: Float[Tensor, " out"],
    error_of_zeros_O: Float[Tensor, " out"],
    damping: float = 0.0,
) -> LayerResult:
    """Take the update of each output channel that it helps; only zero weights in the others."""
    gains_O = error_O <= error_of_zeros_O  # False for NaN too
    new_OI = torch.where(gains_O[:, None], update_OI, weight_OI.float() * keep_OI)
    error = torch.where(gains_O, error_O, error_of_zeros_O).sum().item()
    return LayerResult(new_OI, keep_OI, damping, error)


def row_errors(
    difference_OI: Float32[Tensor, "out in"], gram_II: Float[Tensor, "in in"]
) -> Float[Tensor, " out"]:
    """‖D_o X‖² = D_o (XᵀX) D_oᵀ of every output channel; float64 where float32 does not hold it."""
    error_O = (difference_OI @ gram_II.float()).mul_(difference_OI).sum(1).clamp_min_(0)
    if _TINY <= error_O.max().item() < math.inf or not difference_OI.any():
        return error_O
    wide_OI = _wide(difference_OI)
    return (wide_OI @ _wide(gram_II)).mul_(wide_OI).sum(1).clamp_min_(0).to(error_O.device)


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
