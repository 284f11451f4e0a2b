"""What is the ℓ2 norm of each input channel over all calibration tokens?

Sums are kept for each bin between noise and image, so that a method can weight timesteps later. A
state is a value: `update` and `merge` return a new one, so states can be shared freely.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float32, Float64
from torch import Tensor

# Squares are summed in float32 inside a block of this many tokens and in float64 across blocks:
# relative error below 1e-7 at a ninth of the time of an all-float64 sum (log/2026-11-22-bench.md).
_BLOCK_TOKENS = 64

# The first is the default. Source of the other: OBS-Diff, arXiv 2510.06751; its weights fall
# logarithmically from noise to image.
TIMESTEP_WEIGHTINGS = ("uniform", "log-decrease")
_FIRST_WEIGHT, _LAST_WEIGHT = 1.2, 0.8


@dataclass(frozen=True, eq=False)
class ColumnNorm:
    """Sums of squares [bins, C_in] in float64, and the number of tokens in each bin."""

    sum_squares: Float64[Tensor, "bins in"]
    tokens_in_bin: tuple[int, ...]

    @property
    def num_tokens(self) -> int:
        """The number of tokens in all bins."""
        return sum(self.tokens_in_bin)


def start_norm(
    num_channels: int, num_bins: int = 1, device: torch.device | str = "cpu"
) -> ColumnNorm:
    """The statistic of no tokens."""
    sums = torch.zeros(num_bins, num_channels, dtype=torch.float64, device=device)
    return ColumnNorm(sums, (0,) * num_bins)


def update_norm(
    state: ColumnNorm, inputs: Float[Tensor, "*tokens in"], index: int = 0
) -> ColumnNorm:
    """Add tokens to the bin `index`: a layer's input of any rank and dtype, channels last.

    What one update adds is rounded to float32, which makes the sums of many updates exact in
    float64 and so the same in any order: one process or several, at once or resumed.
    """
    tokens = inputs.detach().reshape(-1, inputs.shape[-1])
    num_tokens = tokens.shape[0]
    in_blocks = num_tokens - num_tokens % _BLOCK_TOKENS
    blocks = tokens[:in_blocks].reshape(-1, _BLOCK_TOKENS, tokens.shape[1])
    sums = blocks.float().square().sum(1)
    rest = tokens[in_blocks:].float().square().sum(0)
    if sums.device != state.sum_squares.device:  # a device without float64
        sums, rest = sums.to(state.sum_squares.device), rest.to(state.sum_squares.device)
    total = sums.sum(0, dtype=torch.float64) + rest
    sum_squares = state.sum_squares.clone()
    sum_squares[index] += total.float()
    counts = list(state.tokens_in_bin)
    counts[index] += num_tokens
    return ColumnNorm(sum_squares, tuple(counts))


def merge_norms(first: ColumnNorm, second: ColumnNorm) -> ColumnNorm:
    """The statistic of both sets of tokens together, on the device of the first."""
    counts = tuple(a + b for a, b in zip(first.tokens_in_bin, second.tokens_in_bin, strict=True))
    added = second.sum_squares.to(first.sum_squares.device)
    return ColumnNorm(first.sum_squares + added, counts)


def finish_norm(
    state: ColumnNorm, weights: Sequence[float] | None = None
) -> Float32[Tensor, " in"]:
    """‖X_j‖₂ for every input channel j (paper, notation of Eq. 4), float32 [C_in].

    Args:
        weights: the weight of each bin's squares; all 1 by default.
    """
    if weights is None:
        return state.sum_squares.sum(0).sqrt().float()
    factors = torch.tensor(weights, dtype=torch.float64, device=state.sum_squares.device)
    return (factors @ state.sum_squares).sqrt().float()


def timestep_weights(weighting: str, num_bins: int) -> tuple[float, ...] | None:
    """The weight of each bin's squares, from noise to image; None for `uniform`, all 1."""
    if weighting == "uniform":
        return None
    span = math.log(num_bins) or 1.0
    fall = _FIRST_WEIGHT - _LAST_WEIGHT
    return tuple(_FIRST_WEIGHT - fall * math.log(1 + i) / span for i in range(num_bins))
