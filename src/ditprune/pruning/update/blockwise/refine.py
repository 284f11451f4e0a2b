"""How is a block refined? Gradient steps on its kept weights towards what it gives when dense.

The block gets what the pruned blocks before it give, so that it makes up for their errors, or what
the dense ones give, so that blocks do not wait for each other. Errors count as much as the
denoiser's output follows them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ditprune.calls import Call
from ditprune.denoiser.blockwise.chain import Chain
from ditprune.denoiser.blockwise.gradients import floating
from ditprune.denoiser.blockwise.residence import Residence
from ditprune.denoiser.blockwise.states import States, tree_bytes
from ditprune.denoiser.blockwise.sweep import Make, Step
from ditprune.denoiser.layout import RowLayout
from ditprune.denoiser.replay import evaluating
from ditprune.method.distill import Distill
from ditprune.method.recipe import Recipe
from ditprune.pruning.update.blockwise.gains import BlockGains, row_moments, weighted_square
from ditprune.pruning.update.blockwise.run import BlockRefined, BlockUpdates
from ditprune.pruning.update.distill import rate_at, rate_for, split
from ditprune.pruning.update.gradients import training
from ditprune.pruning.update.layers import TargetUpdate, trained_updates
from ditprune.pruning.update.swap import matrix_of, replaced
from ditprune.pruning.update.thinning import Thinning, thin_, thinning_of
from ditprune.pruning.update.trained import Trained

_CACHED_BYTES = 2_000_000_000  # of what enters a block; beyond it the denoiser's head runs anew
GainsOf = Callable[[int], BlockGains | None]


_Batch = range  # rows that are trained on, or judged by, together: calls by number


class BlockRefinement:
    """Refines one block after the other, and carries its rows through them.

    One row in sixteen is kept aside: a block whose error on these does not fall keeps what its
    reconstruction gave.

    Args:
        gains_of: how much the output follows a block, by its number; None counts all alike.
    """

    def __init__(
        self, chain: Chain, residence: Residence, calls: Sequence[Call], recipe: Recipe,
        make: Make, gains_of: GainsOf,
    ) -> None:  # fmt: skip
        assert isinstance(recipe.refinement, Distill)
        self._chain, self._recipe, self._settings = chain, recipe, recipe.refinement
        self._gains_of, self._make = gains_of, make
        self._calls: list[Call] = []
        with residence.running():
            layout = RowLayout(chain.denoiser, calls)
            rows = [row for call in calls for row in layout.rows_of(call)]
            rows, aside = split(rows, self._settings.seed)
            self._num_tokens = _tokens(chain, rows[0])
            self._batches = [self._add(layout, part) for part in self._cut(rows)]
            self._aside = [self._add(layout, part) for part in self._cut(aside)] or self._batches
        self._moments = [row_moments(chain.denoiser, call) for call in self._calls]
        self._dense, self._pruned = make(0), make(0)
        self._dense_step: Step | None = None

    def _cut(self, rows: Sequence[Call]) -> list[list[Call]]:
        """Batches of rows in a random order, each a random set."""
        size = self._settings.rows_of_block(self._num_tokens)
        generator = torch.Generator().manual_seed(self._settings.seed)
        order = torch.randperm(len(rows), generator=generator).tolist()
        return [[rows[i] for i in order[n : n + size]] for n in range(0, len(rows), size)]

    def _add(self, layout: RowLayout, rows: Sequence[Call]) -> _Batch:
        first = len(self._calls)
        self._calls += layout.merged(rows)
        return range(first, len(self._calls))

    def __call__(self, step: Step, updates: BlockUpdates) -> BlockUpdates:
        """Refine a block that is resident and dense; it is left as it was. Then `follow` it."""
        dense = self._ran(step)
        is_dense = self._settings.inputs == "dense" or step.number == 0
        entered = _Entered(self._stream(step, self._dense if is_dense else self._pruned))
        problem = _Problem(
            step.block, entered, dense, self._chain.shapes[step.number],
            self._gains_of(step.number), self._moments,
        )  # fmt: skip
        return self._refined(step, updates, problem)

    def follow(self, step: Step, weights: Mapping[str, Tensor]) -> None:
        """Take the rows through a block, dense and with its new weights."""
        dense = self._ran(step)
        if self._settings.inputs == "pruned":
            pruned = self._stream(step, self._pruned if step.number else self._dense)
            with replaced(self._chain.denoiser, weights):
                pruned.advance()
            self._pruned.close()
            self._pruned = pruned.after
        self._dense.close()
        self._dense, self._dense_step = dense.after, None

    def _ran(self, step: Step) -> Step:
        """The dense block with what it gives for all rows."""
        if self._dense_step is None:
            self._dense_step = self._stream(step, self._dense)
            self._dense_step.advance()
        return self._dense_step

    def _stream(self, step: Step, before: States) -> Step:
        after = self._make(len(self._calls))
        return Step(step.number, step.path, step.block, step.chain, self._calls, before, after)

    def _refined(self, step: Step, updates: BlockUpdates, problem: _Problem) -> BlockUpdates:
        denoiser, settings = self._chain.denoiser, self._settings
        last, first = updates.updates, updates.first_updates
        with replaced(denoiser, {name: update.weight for name, update in last.items()}):
            before = problem.error(self._aside)
        thin = None
        if self._recipe.mask == "refinement":
            thin = thinning_of(self._recipe, last, first)
        rate = rate_for(before, settings)
        with replaced(denoiser, {name: update.weight for name, update in first.items()}):
            keep, unreached = self._train_(step, problem, last, first, thin, rate)
            after = problem.error(self._aside)
            weights = {name: matrix_of(denoiser, name).float().clone() for name in last}
        told = BlockRefined(
            after < before, before, after if math.isfinite(after) else None, tuple(unreached)
        )
        if not told.is_taken:
            return replace(updates, first_updates=last, refined=told)
        is_joint = thin is not None and thin.is_joint
        trained = trained_updates(last, weights, keep, is_joint)
        return replace(updates, updates=trained, first_updates=trained, refined=told)

    def _train_(
        self, step: Step, problem: _Problem, last: Mapping[str, TargetUpdate],
        first: Mapping[str, TargetUpdate], thin: Thinning | None, rate: float,
    ) -> tuple[dict[str, Tensor], list[str]]:  # fmt: skip
        """Train the block's kept weights; its masks at the end, and targets without gradients."""
        denoiser, settings = self._chain.denoiser, self._settings
        weights = {name: denoiser.get_parameter(f"{name}.weight") for name in first}
        keep = {name: update.keep for name, update in first.items()}
        settled = {name: (update.weight, update.keep) for name, update in last.items()}
        trained, count = Trained(weights), settings.num_steps
        generator = torch.Generator().manual_seed(settings.seed + step.number)
        order: list[int] = []
        with training(step.block, list(weights.values())):
            for number in range(count):
                if thin and thin.is_due(number, count):
                    thin = thin_(trained, keep, thin, settled, number, count)
                order = order or torch.randperm(len(self._batches), generator=generator).tolist()
                backward = partial(problem.backward, self._batches[order.pop()])
                trained.step_(rate * rate_at(number, count), backward, keep)
        return keep, trained.unreached()


class _Entered:
    """What a block gets in each call, kept where it is small."""

    def __init__(self, stream: Step) -> None:
        self._stream = stream
        self._calls: dict[int, Call] = {}
        self._bytes = 0

    def __getitem__(self, i: int) -> Call:
        if i not in self._calls:
            with evaluating(self._stream.chain.denoiser):
                got = self._stream.enter(i)
            self._bytes += tree_bytes([got.args, dict(got.kwargs)])
            if self._bytes > _CACHED_BYTES:
                return got
            self._calls[i] = got
        return self._calls[i]


@dataclass(frozen=True, eq=False)
class _Problem:
    """What a block gets, what it is to give, and how much errors count.

    Args:
        shape: the block's output with the number of an input like it in place of each tensor.
    """

    block: nn.Module
    entered: _Entered
    dense: Step
    shape: Any
    gains: BlockGains | None
    moments: Sequence[Tensor]

    def error(self, batches: Sequence[_Batch]) -> float:
        """Of the block as it is: the weighted square of its error over that of what it adds."""
        with evaluating(self.block):
            parts = [self._squares(i) for batch in batches for i in batch]
        total = sum(float(square) for _, square in parts)
        return sum(float(error) for error, _ in parts) / total if total else 0.0

    def backward(self, batch: _Batch, scale: float) -> None:
        """Gradients of a batch's error, times `scale`."""
        with torch.enable_grad():
            parts = [self._squares(i) for i in batch]
            total = sum(float(square) for _, square in parts)
            loss: Any = sum(error for error, _ in parts) / (total or 1.0)
            if isinstance(loss, Tensor) and loss.requires_grad:
                (loss * scale if scale != 1 else loss).backward()

    def _squares(self, i: int) -> tuple[Tensor, Tensor]:
        call = self.entered[i]
        targets = floating(self.dense.given(i))
        given = floating(self.block(*call.args, **call.kwargs))
        factors_B = None if self.gains is None else self.gains.at(self.moments[i])
        measure = partial(weighted_square, self.gains, factors_B)
        errors = [a.float() - b.float() for a, b in zip(given, targets, strict=True)]
        inputs, likes = call.leaves(), Call((self.shape,)).leaves()
        places = (k for k in likes if k is not None)
        added = [b - inputs[k] for k, b in zip(places, targets, strict=True)]
        return measure(errors), measure(added).detach()


def _tokens(chain: Chain, row: Call) -> int:
    """Tokens of the larger output of the first block, in a row."""
    with evaluating(chain.denoiser):
        leaves = chain.enter(0, row).leaves()
    likes = [leaves[k] for k in Call((chain.shapes[0],)).leaves() if k is not None]
    return max(leaf.numel() // leaf.shape[-1] for leaf in likes)
