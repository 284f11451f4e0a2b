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
        error: ‖(W − W')X‖² / ‖WX‖² over the calibration inputs.
        error_of_zeros: the same where the kept weights stay as they were.
        num_rows_as_they_were: output channels whose update would have lost to zeros.
    """

    weight: Float32[Tensor, "out in"]
    keep: Bool[Tensor, "out in"]
    damping: float
    error: float
    error_of_zeros: float
    num_rows_as_they_were: int


def adjusted(
    weight_OI: Float[Tensor, "out in"],
    update_OI: Float32[Tensor, "out in"],
    keep_OI: Bool[Tensor, "out in"],
    gram_II: Float[Tensor, "in in"],
    damping: float = 0.0,
) -> Adjusted:
    """Take the update of every output channel that gains by it, and zeros elsewhere."""
    dense_OI = weight_OI.float()
    zeros_OI = dense_OI * keep_OI
    error_O = row_errors(dense_OI - update_OI, gram_II)
    error_of_zeros_O = row_errors(dense_OI - zeros_OI, gram_II)
    gains_O = error_O <= error_of_zeros_O  # False for NaN too
    new_OI = torch.where(gains_O[:, None], update_OI, zeros_OI)
    error = torch.where(gains_O, error_O, error_of_zeros_O).sum().item()
    total = row_errors(dense_OI, gram_II).sum().item() or 1.0
    return Adjusted(
        new_OI, keep_OI, damping, error / total, error_of_zeros_O.sum().item() / total,
        int((~gains_O).sum()),
    )  # fmt: skip


def row_errors(
    difference_OI: Float32[Tensor, "out in"], gram_II: Float[Tensor, "in in"]
) -> Float[Tensor, " out"]:
    """‖D_o X‖² = D_o (XᵀX) D_oᵀ of every output channel."""
    return ((difference_OI @ gram_II.float()) * difference_OI).sum(1)
