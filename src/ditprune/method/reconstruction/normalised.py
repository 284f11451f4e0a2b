"""The least-squares problem of a layer in units where every input channel has norm one.

Channels differ by orders of magnitude; in these units one damping suits all of them, |W_ij| is
Wanda's score, and rounding in float32 is harmless.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Float32
from torch import Tensor

from ditprune.errors import StatisticsError


@dataclass(frozen=True, eq=False)
class Normalised:
    """W_ij ‖X_j‖ and the Gram of X_j / ‖X_j‖, float32.

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
        """Back in the layer's units; what is kept where the input is zero stays as it was."""
        silent_I = self.norm == 0
        raw_OI = update_OI / torch.where(silent_I, torch.ones_like(self.norm), self.norm)
        return torch.where(silent_I, dense_OI.float(), raw_OI) * keep_OI


def normalise(weight_OI: Float[Tensor, "out in"], gram_II: Float[Tensor, "in in"]) -> Normalised:
    """Raises StatisticsError where the Gram is not one: NaN, Inf or a negative diagonal."""
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
