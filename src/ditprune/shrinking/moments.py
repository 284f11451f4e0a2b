"""How does the output follow what reads the units? Moments of its inputs, weighted by gradients.

E‖J·Δy‖² of an error Δy = ΔW x + Δb of a layer is about Σ_o b_o · Σ_t a_t Δy_to², with a_t b_o for
the squared gradient of the output, as in `pruning/update/output_grams.py`. So a layer's moments
weigh each token by a_t, and errors of its rows count b_o.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ditprune.calls import Call
from ditprune.denoiser.blockwise.chain import Chain
from ditprune.denoiser.blockwise.residence import Residence
from ditprune.denoiser.blockwise.sweep import BackwardStep, Make, backwards, trace
from ditprune.denoiser.replay import predicted, run_call
from ditprune.method.columns import Moments
from ditprune.pruning.update.blockwise.gains import BlockGains, gains_of
from ditprune.pruning.update.gradients import outside_inference
from ditprune.pruning.update.grams import is_reached
from ditprune.pruning.update.output_grams import (
    OutputGrams,
    output_gradients,
    signed_sum,
    watching_gradients,
)

_SMALLEST_ROW = 1e-8  # of the mean


@dataclass(frozen=True, eq=False)
class Demand:
    """What is known of a layer that reads units.

    Args:
        moments: of its inputs; tokens are weighted by how much the output follows them.
        rows: how much an error of each output channel counts, [C_out], mean one.
    """

    moments: Moments
    rows: Tensor


def collect(
    denoiser: nn.Module, names: Sequence[str], calls: Iterable[Call]
) -> dict[str, Demand]:  # fmt: skip
    """Of these layers, by a forward and a backward pass for each call; those that no gradient
    reaches are left out.

    Raises StatisticsError for NaN and Inf.
    """
    grams = OutputGrams(lambda _: 1.0)

    def see(name: str, tokens: Tensor, gradient: Tensor, call: Call) -> None:
        grams.add(name, with_ones(tokens), gradient, call)

    output_gradients(denoiser, names, calls, see)
    return _finished(grams)


def _finished(grams: OutputGrams) -> dict[str, Demand]:
    grams.check_finite()
    return {
        name: followed(state.gram.sum_products, state.sum_squares)
        for name, state in grams.states.items()
        if is_reached(state)
    }


@dataclass(frozen=True, eq=False)
class Road:
    """How one goes through a denoiser whose blocks chain.

    Args:
        every: hidden states of one block in so many are kept for the way back.
    """

    chain: Chain
    residence: Residence
    make: Make
    every: int = 1


@dataclass(frozen=True, eq=False)
class BlockDemand:
    """What is known of a block.

    Args:
        layers: that read units.
        gains: how much the output follows what the block gives; None where no gradient comes.
    """

    layers: Mapping[str, Demand]
    gains: BlockGains | None


def collect_by_block(
    road: Road, names_of: Mapping[str, Sequence[str]], calls: Sequence[Call],
    told: Callable[[int], None] = lambda _: None,
    output: Callable[[float], None] = lambda _: None,
) -> Generator[tuple[str, BlockDemand], None, None]:  # fmt: skip
    """Of every block, from the last to the first, with its path: once forwards, once back.

    Args:
        names_of: by block, its layers that read units.
        told: is told how many blocks have run; each counts twice.
        output: is told the sum of squares of what the denoiser predicts, call by call.

    Raises StatisticsError for NaN and Inf.
    """
    calls, sign = outside_inference(calls), signed_sum()

    def signed(given: Any, call: Call) -> Tensor:
        output(_square(given, call))
        return sign(given, call)

    seen = trace(road.chain, calls, road.residence, road.make, lambda n: told(n + 1), road.every)
    steps = backwards(road.chain, calls, road.residence, seen, signed)
    num_done = len(road.chain.blocks)
    with closing(steps):
        for step in steps:
            gains = gains_of(road.chain.denoiser, calls, step.given_gradients())
            layers = _of_block(step, names_of.get(step.path, ()))
            num_done += 1
            told(num_done)
            yield step.path, BlockDemand(layers, gains)


def _of_block(step: BackwardStep, names: Sequence[str]) -> dict[str, Demand]:
    grams, current = OutputGrams(lambda _: 1.0), list[Call]()

    def at(call: Call) -> None:
        current[:] = [call]

    def begin(name: str, tokens: Tensor) -> Callable[[Tensor], object]:
        def add(gradient: Tensor) -> object:
            return grams.add(name, with_ones(tokens), gradient, current[0])

        return add

    with watching_gradients(step.chain.denoiser, names, begin):
        step.run(at)
    return _finished(grams)


def output_square(denoiser: nn.Module, calls: Iterable[Call]) -> float:
    """The sum of squares of what the denoiser predicts for all calls."""
    return sum(_square(run_call(denoiser, call), call) for call in calls)


def _square(output: Any, call: Call) -> float:
    return sum(float(t.detach().double().square().sum()) for _, t in predicted(output, call))


def with_ones(tokens_TI: Tensor) -> Tensor:
    """Tokens with a one behind their channels, so that their products hold sums and a count."""
    return torch.cat([tokens_TI, tokens_TI.new_ones(len(tokens_TI), 1)], 1)


def followed(products: Tensor, sum_squares: Tensor) -> Demand:
    """From the products of tokens with a one behind them, and the squares of gradients by row."""
    products = (products + products.T) / 2
    moments = Moments(products[:-1, :-1], products[:-1, -1], float(products[-1, -1]))
    rows = sum_squares / sum_squares.mean()
    return Demand(moments, rows.clamp_min(_SMALLEST_ROW).float())
