"""How much does the denoiser's output follow what a block gives? By channel, and by moment.

The mean square of the output's gradient over the tokens of a block's output is about a(t) b(c): a
factor for the moment between noise and image, and one for the channel. Both come from a few rows
and serve all: on the bundled model a factor for every token gave the same error.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ditprune.calls import Call
from ditprune.denoiser.capture import timestep_of
from ditprune.denoiser.rows import num_rows

_SMALLEST = 1e-6  # of the mean: what counts less would be left to chance


@dataclass(frozen=True, eq=False)
class BlockGains:
    """Of one block's floating outputs, in order.

    Args:
        channels: for each output, b(c), float32 [C], mean one over all outputs' channels.
        moments: timesteps, ascending, float64 [M].
        factors: a(t) at those, float32 [M], mean one.
    """

    channels: tuple[Tensor, ...]
    moments: Tensor
    factors: Tensor

    def at(self, moments_B: Tensor) -> Tensor:
        """a(t) at each of these timesteps: that of the nearest one that was seen, [B]."""
        distances_BM = (moments_B[:, None].double() - self.moments[None]).abs()
        return self.factors[distances_BM.argmin(1)]

    def tensors(self) -> dict[str, Tensor]:
        """By name, for a file."""
        named = {f"channels.{i}": channels for i, channels in enumerate(self.channels)}
        return {**named, "moments": self.moments, "factors": self.factors}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> BlockGains:
        """From what `tensors` gave."""
        count = len(tensors) - 2
        channels = tuple(tensors[f"channels.{i}"] for i in range(count))
        return cls(channels, tensors["moments"], tensors["factors"])


def gains_of(
    denoiser: nn.Module, calls: Sequence[Call], gradients: Sequence[Sequence[Tensor | None]]
) -> BlockGains | None:
    """From the gradients of a block's floating outputs in every call; None where none comes back.

    Outputs have channels last, and a row for each item.
    """
    sums: dict[int, Tensor] = {}
    by_moment: dict[float, list[Tensor]] = {}
    for call, given in zip(calls, gradients, strict=True):
        moments = row_moments(denoiser, call)
        for i, gradient in enumerate(given):
            if gradient is None:
                continue
            squares = gradient.double().square()
            channels = squares.flatten(0, -2).mean(0).cpu()
            sums[i] = sums[i] + channels if i in sums else channels
            rows = _by_row(squares, len(moments))
            for moment, row in zip(moments.tolist(), rows.tolist(), strict=True):
                by_moment.setdefault(moment, []).append(torch.tensor(row, dtype=torch.float64))
    if not sums or not sum(float(channels.sum()) for channels in sums.values()) > 0:
        return None
    return _scaled(sums, len(gradients[0]), by_moment)


def _scaled(
    sums: Mapping[int, Tensor], num_outputs: int, by_moment: Mapping[float, Sequence[Tensor]]
) -> BlockGains:
    mean = torch.cat(list(sums.values())).mean()
    nothing = torch.zeros(1, dtype=torch.float64)  # no gradient comes to this output
    channels = tuple(
        (sums.get(i, nothing) / mean).clamp_min(_SMALLEST).float() for i in range(num_outputs)
    )
    moments = sorted(by_moment)
    factors = torch.stack([torch.stack(list(by_moment[m])).mean() for m in moments])
    factors = (factors / factors.mean()).clamp_min(_SMALLEST)
    return BlockGains(channels, torch.tensor(moments, dtype=torch.float64), factors.float())


def row_moments(denoiser: nn.Module, call: Call) -> Tensor:
    """The timestep of each row of a call, float64 [B]; zeros where a call tells none."""
    count = num_rows(call)
    _, timestep = timestep_of(denoiser, call)
    if timestep is None:
        return torch.zeros(count, dtype=torch.float64)
    values = torch.as_tensor(timestep).detach().double().cpu()
    if values.ndim and len(values) == count:
        return values.reshape(count, -1).mean(1)
    return values.mean().expand(count)


def weighted_square(
    gains: BlockGains | None, factors_B: Tensor | None, outputs: Sequence[Tensor]
) -> Tensor:
    """Σ a(t) b(c) y² over all outputs y [B, …, C], in float32; plain squares without gains."""
    total: Any = 0.0
    for i, output in enumerate(outputs):
        squares = output.float().square()
        if gains is not None and factors_B is not None:
            squares = squares * gains.channels[i].to(squares.device)
            if squares.ndim > 1 and len(squares) == len(factors_B):
                shape = (-1, *[1] * (squares.ndim - 1))
                squares = squares * factors_B.to(squares.device).reshape(shape)
        total = total + squares.sum()
    return torch.as_tensor(total)


def _by_row(squares: Tensor, count: int) -> Tensor:
    """The mean of each row, [count]; of all where there are no rows."""
    if squares.ndim > 1 and len(squares) == count:
        return squares.reshape(count, -1).mean(1)
    return squares.mean().expand(count)
