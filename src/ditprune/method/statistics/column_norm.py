"""What is the ℓ2 norm of each input channel over all calibration tokens?

Sums are kept for each bin between noise and image, so that a method can weight timesteps later. A
state is a value: `update` and `merge` return a new one, so states can be shared freely.

What an update adds has 24 significant bits, and a sum is two float64 without overlap, which hold it
exactly while channels' amplitudes spread over less than 1e9. So sums have the same bits in any
order: one process or several, at once or resumed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Float32, Float64
from torch import Tensor

# Squares are summed in float32 inside a block of this many tokens and in float64 across blocks:
# relative error below 1e-7 at a ninth of the time of an all-float64 sum (log/2026-11-22-bench.md).
_BLOCK_TOKENS = 64
_SMALLEST_SQUARE = torch.finfo(torch.float32).tiny  # below it squares lose bits
_SPLIT = 2.0**29 + 1  # splits a float64 after 24 bits (Veltkamp)

# The first is the default. Source of the other: OBS-Diff, arXiv 2510.06751; its weights fall
# logarithmically from noise to image.
TIMESTEP_WEIGHTINGS = ("uniform", "log-decrease")
_FIRST_WEIGHT, _LAST_WEIGHT = 1.2, 0.8


@dataclass(frozen=True, eq=False)
class ColumnNorm:
    """Sums of squares [bins, C_in] in float64, and the number of tokens in each bin.

    Args:
        rest: what `sum_squares` lacks of the exact sums; zeros by default.
    """

    sum_squares: Float64[Tensor, "bins in"]
    tokens_in_bin: tuple[int, ...]
    rest: Float64[Tensor, "bins in"] = field(default=None)  # type: ignore[assignment]

    def __post_init__(self) -> None:
        if self.rest is None:
            object.__setattr__(self, "rest", torch.zeros_like(self.sum_squares))

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
    """Add tokens to the bin `index`: a layer's input of any rank and dtype, channels last."""
    tokens = inputs.detach().reshape(-1, inputs.shape[-1])
    sum_squares, rest = state.sum_squares.clone(), state.rest.clone()
    added = _rounded(_squares(tokens, sum_squares.device))
    sum_squares[index], rest[index] = _sum(sum_squares[index], rest[index], added)
    counts = list(state.tokens_in_bin)
    counts[index] += tokens.shape[0]
    return ColumnNorm(sum_squares, tuple(counts), rest)


def _squares(tokens_TI: Float[Tensor, "tokens in"], device: torch.device) -> Float64[Tensor, " in"]:
    """The sum of squares of every channel, on the device of the sums."""
    in_blocks = len(tokens_TI) - len(tokens_TI) % _BLOCK_TOKENS
    blocks = tokens_TI[:in_blocks].reshape(-1, _BLOCK_TOKENS, tokens_TI.shape[1])
    sums = blocks.float().square().sum(1).to(device)  # some devices have no float64
    rest_I = tokens_TI[in_blocks:].float().square().sum(0).to(device)
    total_I = sums.sum(0, dtype=torch.float64) + rest_I
    holds_I = (total_I >= len(tokens_TI) * _SMALLEST_SQUARE) & total_I.isfinite()
    if not holds_I.all():  # squares beyond float32, or channels of zeros
        outside = (~holds_I).nonzero()[:, 0]
        exact = tokens_TI[:, outside.to(tokens_TI.device)].to(device).double()
        total_I[outside] = exact.square().sum(0)
    return total_I


def _rounded(sums: Float64[Tensor, " in"]) -> Float64[Tensor, " in"]:
    """Sums of 24 significant bits."""
    narrow = sums.float().double()
    is_narrow = narrow.isfinite() & (narrow >= _SMALLEST_SQUARE)
    scaled = sums * _SPLIT
    return torch.where(is_narrow, narrow, scaled - (scaled - sums))


def _sum(high: Tensor, low: Tensor, added: Tensor) -> tuple[Tensor, Tensor]:
    """high + low + added as a sum rounded to float64, and what is missing (Knuth's two-sum)."""
    total, error = _two_sum(high, added)
    return _two_sum(total, low + error)


def _two_sum(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    total = a + b
    of_b = total - a
    return total, (a - (total - of_b)) + (b - of_b)


def merge_norms(first: ColumnNorm, second: ColumnNorm) -> ColumnNorm:
    """The statistic of both sets of tokens together, on the device of the first."""
    counts = tuple(a + b for a, b in zip(first.tokens_in_bin, second.tokens_in_bin, strict=True))
    device = first.sum_squares.device
    high, low = _sum(first.sum_squares, first.rest, second.sum_squares.to(device))
    sums, rest = _sum(high, low, second.rest.to(device))
    return ColumnNorm(sums, counts, rest)


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
