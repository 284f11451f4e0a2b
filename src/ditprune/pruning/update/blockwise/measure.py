"""How does the output follow each target? Seen block by block, on the way back."""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from ditprune.calls import Call
from ditprune.denoiser.blockwise.states import States
from ditprune.denoiser.blockwise.sweep import BackwardStep, Step, backwards, trace
from ditprune.pruning.update.blockwise.collect import plain_grams
from ditprune.pruning.update.blockwise.gains import gains_of
from ditprune.pruning.update.blockwise.run import BlockRun, Followed
from ditprune.pruning.update.grams import LayerGram, finished, is_reached
from ditprune.pruning.update.output_grams import (
    OutputGram,
    OutputGrams,
    signed_sum,
    watching_gradients,
)

# Of some targets of a block: its number, their Grams, and how much their tokens count.
Seen = tuple[int, dict[str, LayerGram], dict[str, Followed]]


def measured_backwards(run: BlockRun, wanted: Collection[int]) -> Generator[Seen, None, None]:
    """Every target of the wanted blocks, from the last block to the first, each block in as many
    parts as Grams need memory for.
    """
    denoiser = run.chain.denoiser
    names = [name for number in wanted for name in run.names_in(number)]
    outside, signed = _Watched(OutputGrams(run.weight_of)), signed_sum()

    def signed_of(output: Any, call: Call) -> Tensor:
        outside.call = call
        return signed(output, call)

    def told(number: int) -> None:
        run.told("running blocks", number + 1)

    outputs = trace(run.chain, run.calls, run.residence, run.make, told, run.every)
    steps = backwards(run.chain, run.calls, run.residence, outputs, signed_of)
    # What no block runs, the first block's embedding at DiT's end for one, runs here.
    with watching_gradients(denoiser, names, outside.begin):
        first = next(steps)
    outside.grams.check_finite()
    for num_done, step in enumerate(chain([first], steps), start=1):
        if step.number in wanted:
            if run.refine_calls:
                gradients = step.given_gradients()
                run.results.keep_gains(step.number, gains_of(denoiser, run.calls, gradients))
            yield from _of_block(run, step, outside.grams.states)
        else:
            step.run()
        run.told("measuring blocks", num_done)
        if step.number == min(wanted):
            break
    steps.close()


def _of_block(
    run: BlockRun, step: BackwardStep, outside: Mapping[str, OutputGram]
) -> Iterator[Seen]:
    gradients = list(step.gradients)
    for names in run.stages(run.names_in(step.number)):
        step.gradients[:] = gradients
        watched = _Watched(OutputGrams(run.weight_of))
        watched.grams.states = {name: outside[name] for name in names if name in outside}
        with watching_gradients(run.chain.denoiser, names, watched.begin):
            step.run(watched.at)
        watched.grams.check_finite()
        states = watched.grams.states
        reached = [name for name in names if name in states and is_reached(states[name])]
        grams = {name: finished(name, states[name]) for name in reached}
        measured = {
            name: Followed(
                (), grams[name].rows, torch.cat(watched.roots[name]).cpu(),
                outside[name].gram.sum_products if name in outside else None,
            )
            for name in reached
        }  # fmt: skip
        if rest := [name for name in names if name not in grams]:
            grams |= plain_grams(run, _forwards(step), rest)
            measured |= dict.fromkeys(rest, Followed(()))
        yield step.number, grams, measured


def _forwards(step: BackwardStep) -> Step:
    """The same block, to be run without gradients."""
    before = step.before or States(0)
    return Step(
        step.number, step.path, step.block, step.chain, step.calls, before, States(0), has_run=True
    )


@dataclass(eq=False)
class _Watched:
    """Inputs and gradients of layers as they come.

    Args:
        call: of the denoiser, that is under way.
        roots: √ of how much tokens count, by layer, a tensor for each of its forwards; zero where
            no gradient comes back.
    """

    grams: OutputGrams
    call: Call | None = None
    roots: dict[str, list[Tensor]] = field(default_factory=dict)

    def at(self, call: Call) -> None:
        self.call = call

    def begin(self, name: str, tokens: Tensor) -> Callable[[Tensor], None]:
        roots = self.roots.setdefault(name, [])
        place = len(roots)
        roots.append(torch.zeros(len(tokens), device=tokens.device))

        def show(gradient: Tensor) -> None:
            assert self.call is not None
            roots[place] = self.grams.add(name, tokens, gradient, self.call)[:, 0]

        return show
