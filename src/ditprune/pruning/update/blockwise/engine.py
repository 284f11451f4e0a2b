"""In which order is the work of updating blocks done?

Where the recipe follows the output, one pass goes back through the blocks and tells what every
layer costs; then budgets are known. A pass forwards takes Grams and updates each block. Where
shares are known before, the pass back updates at once; where the Grams of all targets fit into
memory together, they are kept from it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace

import torch

from ditprune.calls import Call
from ditprune.denoiser.blockwise.states import States
from ditprune.denoiser.blockwise.sweep import Step, forwards
from ditprune.pruning.update import budgets
from ditprune.pruning.update.blockwise.collect import block_grams
from ditprune.pruning.update.blockwise.measure import measured_backwards
from ditprune.pruning.update.blockwise.refine import BlockRefinement
from ditprune.pruning.update.blockwise.run import BlockRun, BlockUpdates, Followed
from ditprune.pruning.update.gradients import no_gradients, outside_inference
from ditprune.pruning.update.grams import LayerGram
from ditprune.pruning.update.layers import (
    TargetUpdate,
    errors_of,
    is_settled_by_saliency,
    target_update,
    update_at,
)

FollowedOf = Callable[[int], Mapping[str, Followed]]


def update_blocks(given: BlockRun) -> None:
    """Update every target of this process's blocks, and keep the results; the denoiser itself is
    left as it was. Blocks that are done are not done again.

    Raises RecipeError, StatisticsError, ModelError.
    """
    with ExitStack() as stack, torch.inference_mode(False):

        def make(count: int) -> States:
            states = given.make(count)
            stack.callback(states.close)  # which an interrupt would leave open
            return states

        run = replace(given, calls=outside_inference(given.calls), make=make)
        budgets.check_shares(run.layers, run.recipe)
        if run.recipe.objective == "layer":
            _update_forwards(run, lambda _number: {}, _shares(run, None), run.calls)
        elif run.recipe.allocation == "proxy" or run.refine_calls:
            _update_measured(run)
        else:
            _update_backwards(run, _shares(run, None))


@dataclass(frozen=True, eq=False)
class _Shares:
    """Of every target: at the end, and before a refinement that removes the rest, if any does."""

    after: Mapping[str, float | None]
    before: Mapping[str, float | None] | None

    def of(self, run: BlockRun, name: str, gram: LayerGram) -> tuple[TargetUpdate, TargetUpdate]:
        """A target's updates at both."""
        update = update_at(run.layers[name], gram, run.recipe)
        last = target_update(update, self.after[name])
        first = last if self.before is None else target_update(update, self.before[name])
        return last, first


def _shares(run: BlockRun, costs: Mapping[str, Sequence[float]] | None) -> _Shares:
    layers, recipe = run.layers, run.recipe
    after = budgets.shares(layers, costs, recipe)
    if recipe.mask != "refinement":
        return _Shares(after, None)
    return _Shares(after, budgets.shares(layers, costs, budgets.first_part(recipe)))


def _updated(run: BlockRun, grams: Mapping[str, LayerGram], shares: _Shares) -> BlockUpdates:
    pairs = {name: shares.of(run, name, gram) for name, gram in grams.items()}
    few = [name for name, gram in grams.items() if is_settled_by_saliency(gram, run.recipe)]
    return BlockUpdates(
        {name: last for name, (last, _) in pairs.items()},
        {name: first for name, (_, first) in pairs.items()},
        tuple(few),
    )


def _joined(parts: Sequence[BlockUpdates]) -> BlockUpdates:
    return BlockUpdates(
        {name: update for part in parts for name, update in part.updates.items()},
        {name: update for part in parts for name, update in part.first_updates.items()},
        tuple(name for part in parts for name in part.few),
    )


def _undone(run: BlockRun) -> list[int]:
    return [number for number in run.own_blocks() if not run.results.is_done(number)]


def _update_backwards(run: BlockRun, shares: _Shares) -> None:
    """Every block from its Grams on the way back."""
    undone = _undone(run)
    if not undone:
        return
    parts: list[BlockUpdates] = []
    with closing(measured_backwards(run, undone)) as seen:
        for number, grams, _ in seen:
            parts.append(_updated(run, grams, shares))
            if sum(len(part.updates) for part in parts) == len(run.names_in(number)):
                run.results.keep(number, _joined(parts))
                parts = []


def _update_measured(run: BlockRun) -> None:
    """Costs of all blocks first; then shares, then every block."""
    keeps_grams = len(run.stages(list(run.layers))) == 1
    undone, blocks = _undone(run), run.own_blocks()
    missing = [number for number in blocks if run.results.measured(number) is None]
    with_grams = _measure(run, sorted({*missing, *(undone if keeps_grams else ())}), keeps_grams)

    def measured(number: int) -> Mapping[str, Followed]:
        return with_grams.get(number) or run.results.measured(number) or {}

    shares = _shares(run, _costs(run, measured))
    if not keeps_grams or run.refine_calls:
        _update_forwards(run, measured, shares, [] if keeps_grams else run.calls)
        return
    for num_done, number in enumerate(undone, start=1):
        run.results.keep(number, _updated(run, _grams_kept(with_grams[number]), shares))
        run.progress("updating blocks", num_done, len(undone))


def _grams_kept(measured: Mapping[str, Followed]) -> dict[str, LayerGram]:
    return {name: seen.gram for name, seen in measured.items() if seen.gram is not None}


def _measure(
    run: BlockRun, wanted: Collection[int], keeps_grams: bool
) -> dict[int, dict[str, Followed]]:
    """Measure these blocks; returns them with the Grams of their targets, where these are kept."""
    blocks: dict[int, dict[str, Followed]] = {}
    if not wanted:
        return blocks
    with closing(measured_backwards(run, wanted)) as seen:
        for number, grams, tokens in seen:
            block = blocks.setdefault(number, {})
            for name, gram in grams.items():
                errors, gram_kept = _errors(run, name, gram), gram if keeps_grams else None
                block[name] = replace(tokens[name], errors=errors, gram=gram_kept)
            if len(block) == len(run.names_in(number)):
                run.results.keep_measured(number, block)
                if not keeps_grams:
                    del blocks[number]
    return blocks


def _errors(run: BlockRun, name: str, gram: LayerGram) -> tuple[float, ...]:
    if run.recipe.allocation != "proxy":
        return ()
    errors = tuple(errors_of(run.layers[name], gram, run.recipe, budgets.LEVELS))
    budgets.check_costs(name, errors)
    return errors


def _costs(run: BlockRun, measured: FollowedOf) -> dict[str, list[float]] | None:
    """What every target costs, from all processes. Raises ModelError where no gradient came."""
    items = [item for number in run.own_blocks() for item in measured(number).items()]
    told = {name: (seen.errors, seen.rows is not None) for name, seen in items}
    every = {name: of for part in run.worker.gather(told) for name, of in part.items()}
    if not any(is_reached for _, is_reached in every.values()):
        raise no_gradients(run.chain.denoiser, "no gradient reaches a target")
    if run.recipe.allocation != "proxy":
        return None
    unknown = [name for name, (_, is_reached) in every.items() if not is_reached]
    return budgets.with_middle({name: list(every[name][0]) for name in run.layers}, unknown)


def _update_forwards(
    run: BlockRun, measured: FollowedOf, shares: _Shares, calls: Sequence[Call]
) -> None:
    """Every block in turn. What is done is not done again, but a refinement's rows pass it.

    Args:
        calls: that Grams are taken of; none where they are kept.
    """
    undone = _undone(run)
    if not undone and not _waits(run):
        return
    refinement = _refinement(run)
    with closing(forwards(run.chain, calls, run.residence, run.make)) as steps:
        for step in steps:
            if step.number in undone:
                updates = _update_block(run, step, measured(step.number), shares)
                if refinement is not None:
                    updates = refinement(step, updates)
                run.results.keep(step.number, updates)
            if _waits(run):  # the next block sees what this one becomes
                run.worker.wait()
            if refinement is not None:
                refinement.follow(step, run.results.weights(step.number))
            run.told("updating blocks", step.number + 1)
            if not _waits(run) and step.number == undone[-1]:
                break


def _waits(run: BlockRun) -> bool:
    """Whether processes take blocks in turn."""
    settings = run.recipe.refinement
    if settings is None or not run.refine_calls:
        return False
    return settings.inputs == "pruned" and run.worker.world > 1


def _refinement(run: BlockRun) -> BlockRefinement | None:
    if not run.refine_calls:
        return None
    calls = outside_inference(run.refine_calls)
    return BlockRefinement(run.chain, run.residence, calls, run.recipe, run.make, run.results.gains)


def _update_block(
    run: BlockRun, step: Step, seen: Mapping[str, Followed], shares: _Shares
) -> BlockUpdates:
    at_once = _grams_kept(seen)
    parts = [at_once] if at_once else block_grams(run, step, seen)
    return _joined([_updated(run, grams, shares) for grams in parts])
