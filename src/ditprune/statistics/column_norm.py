"""The ℓ2 norm of every input channel over all calibration tokens.

A state is a value: `update` and `merge` return a new one, so states can be shared freely.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Float32, Float64
from torch import Tensor

# Squares are summed in float32 inside a block of this many tokens and in float64 across blocks:
# relative error below 1e-7 at a ninth of the time of an all-float64 sum (log/2026-11-22-bench.md).
_BLOCK_TOKENS = 64


@dataclass(frozen=True, eq=False)
class ColumnNorm:
    """Sums of squares [C_in] in float64 and the number of tokens they were taken over."""

    sum_squares: Float64[Tensor, " in"]
    num_tokens: int


def start(num_channels: int, device: torch.device | str = "cpu") -> ColumnNorm:
    """The statistic of no tokens at all."""
    return ColumnNorm(torch.zeros(num_channels, dtype=torch.float64, device=device), 0)


def update(state: ColumnNorm, inputs: Float[Tensor, "*tokens in"]) -> ColumnNorm:
    """Add tokens: a layer's input of any rank, channels last, of any floating dtype."""
    tokens = inputs.detach().reshape(-1, inputs.shape[-1])
    num_tokens = tokens.shape[0]
    in_blocks = num_tokens - num_tokens % _BLOCK_TOKENS
    blocks = tokens[:in_blocks].reshape(-1, _BLOCK_TOKENS, tokens.shape[1])
    total = blocks.float().square().sum(1).sum(0, dtype=torch.float64)
    if in_blocks < num_tokens:
        total += tokens[in_blocks:].float().square().sum(0)
    return ColumnNorm(state.sum_squares + total, state.num_tokens + num_tokens)


def merge(first: ColumnNorm, second: ColumnNorm) -> ColumnNorm:
    """The statistic of both sets of tokens together."""
    return ColumnNorm(first.sum_squares + second.sum_squares, first.num_tokens + second.num_tokens)


def finish(state: ColumnNorm) -> Float32[Tensor, " in"]:
    """‖X_j‖₂ for every input channel j (paper, notation of Eq. 4), float32 [C_in]."""
    return state.sum_squares.sqrt().float()
