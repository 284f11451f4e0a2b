"""Least squares on the kept weights, for all output channels at once."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float32
from torch import Tensor

_SMALLEST = torch.finfo(torch.float32).tiny


def solve_on_support(
    start_OI: Float32[Tensor, "out in"],
    target_OI: Float32[Tensor, "out in"],
    gram_II: Float32[Tensor, "in in"],
    keep_OI: Bool[Tensor, "out in"],
    num_steps: int,
) -> Float32[Tensor, "out in"]:
    """Minimise ½ z H zᵀ − b zᵀ over each row z that is zero outside its mask.

    Conjugate gradients, every row with its own steps: a step is one product [O, I] × [I, I], where
    an exact solution would factor a matrix for each row. Every step lowers every row's objective.

    Args:
        start_OI: where to begin, zero outside the mask.
        target_OI: b, in the rows' order.
        gram_II: H, symmetric and positive; best with a unit diagonal.
        keep_OI: True where a row may differ from zero.
        num_steps: 0 gives the start back.
    """
    solution_OI = start_OI.clone()
    residual_OI = (target_OI - start_OI @ gram_II).mul_(keep_OI)
    direction_OI = residual_OI.clone()
    square_O1 = residual_OI.square().sum(1, keepdim=True)
    for _ in range(num_steps):
        change_OI = (direction_OI @ gram_II).mul_(keep_OI)
        curvature_O1 = (direction_OI * change_OI).sum(1, keepdim=True)
        # A row that has arrived has direction zero, and stays.
        length_O1 = square_O1 / curvature_O1.clamp_min(_SMALLEST)
        solution_OI.addcmul_(direction_OI, length_O1)
        residual_OI.addcmul_(change_OI, length_O1, value=-1)
        before_O1, square_O1 = square_O1, residual_OI.square().sum(1, keepdim=True)
        direction_OI.mul_(square_O1 / before_O1.clamp_min(_SMALLEST)).add_(residual_OI)
    return solution_OI
