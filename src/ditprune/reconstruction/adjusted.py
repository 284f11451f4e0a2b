"""What a reconstruction gives back, and the promise it keeps: never worse than zeros."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Float32
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Adjusted:
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


def adjusted(
    weight_OI: Float[Tensor, "out in"],
    update_OI: Float32[Tensor, "out in"],
    keep_OI: Bool[Tensor, "out in"],
    error_O: Float32[Tensor, " out"],
    error_of_zeros_O: Float32[Tensor, " out"],
    damping: float = 0.0,
) -> Adjusted:
    """Take the update of every output channel that gains by it, and zeros elsewhere."""
    gains_O = error_O <= error_of_zeros_O  # False for NaN too
    new_OI = torch.where(gains_O[:, None], update_OI, weight_OI.float() * keep_OI)
    error = torch.where(gains_O, error_O, error_of_zeros_O).sum().item()
    return Adjusted(new_OI, keep_OI, damping, error)


def row_errors(
    difference_OI: Float32[Tensor, "out in"], gram_II: Float[Tensor, "in in"]
) -> Float32[Tensor, " out"]:
    """‖D_o X‖² = D_o (XᵀX) D_oᵀ of every output channel."""
    return (difference_OI @ gram_II.float()).mul_(difference_OI).sum(1).clamp_min_(0)
