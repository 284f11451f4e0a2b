"""What does a block get and what is it to give, for the rows that it is trained and judged on?

It gets what the smaller blocks before it give, so that it makes up for their errors, or what the
dense ones give, so that blocks do not wait for each other. Errors count as much as the denoiser's
output follows them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
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
from ditprune.pruning.update.blockwise.gains import BlockGains, row_moments, weighted_square
from ditprune.pruning.update.distill import split
from ditprune.pruning.update.swap import replaced

_CACHED_BYTES = 2_000_000_000  # of what enters a block; beyond it the denoiser's head runs anew
GainsOf = Callable[[int], BlockGains | None]
Batch = range  # rows that are trained on, or judged by, together: calls by number


class BlockTeacher:
    """Carries rows through the blocks, dense and as they become.

    One row in sixteen is kept aside, to judge by.

    Args:
        gains_of: how much the output follows a block, by its number; None counts all alike.

    Attributes:
        batches: to train on.
        aside: to judge by.
    """

    def __init__(
        self, chain: Chain, residence: Residence, calls: Sequence[Call], settings: Distill,
        make: Make, gains_of: GainsOf,
    ) -> None:  # fmt: skip
        self._chain, self._settings = chain, settings
        self._gains_of, self._make = gains_of, make
        self._calls: list[Call] = []
        with residence.running():
            layout = RowLayout(chain.denoiser, calls)
            rows = [row for call in calls for row in layout.rows_of(call)]
            rows, aside = split(rows, settings.seed)
            self._num_tokens = _tokens(chain, rows[0])
            self.batches = [self._add(layout, part) for part in self._cut(rows)]
            self.aside = [self._add(layout, part) for part in self._cut(aside)] or self.batches
        self._moments = [row_moments(chain.denoiser, call) for call in self._calls]
        self._dense, self._smaller = make(0), make(0)
        self._dense_step: Step | None = None

    def _cut(self, rows: Sequence[Call]) -> list[list[Call]]:
        """Batches of rows in a random order, each a random set."""
        size = self._settings.rows_of_block(self._num_tokens)
        generator = torch.Generator().manual_seed(self._settings.seed)
        order = torch.randperm(len(rows), generator=generator).tolist()
        return [[rows[i] for i in order[n : n + size]] for n in range(0, len(rows), size)]

    def _add(self, layout: RowLayout, rows: Sequence[Call]) -> Batch:
        first = len(self._calls)
        self._calls += layout.merged(rows)
        return range(first, len(self._calls))

    def drawn(self, number: int) -> Iterator[Batch]:
        """Batches for block `number`, without end: all in a random order, then in another."""
        generator = torch.Generator().manual_seed(self._settings.seed + number)
        while True:
            order = torch.randperm(len(self.batches), generator=generator).tolist()
            yield from (self.batches[i] for i in reversed(order))

    def problem(self, step: Step, block: nn.Module | None = None) -> BlockProblem:
        """What a block that is resident and dense is to give.

        Args:
            block: that is to give it; the resident one by default.
        """
        dense = self._ran(step)
        is_dense = self._settings.inputs == "dense" or step.number == 0
        entered = _Entered(self._stream(step, self._dense if is_dense else self._smaller))
        return BlockProblem(
            block or step.block, entered, dense, self._chain.shapes[step.number],
            self._gains_of(step.number), self._moments,
        )  # fmt: skip

    def follow(
        self, step: Step, weights: Mapping[str, Tensor], block: nn.Module | None = None
    ) -> None:
        """Take the rows through a block, dense and as it becomes.

        Args:
            weights: new ones, by target.
            block: that takes its place; the resident one by default.
        """
        dense = self._ran(step)
        if self._settings.inputs == "pruned":
            smaller = self._stream(step, self._smaller if step.number else self._dense, block)
            with replaced(self._chain.denoiser, weights):
                smaller.advance()
            self._smaller.close()
            self._smaller = smaller.after
        self._dense.close()
        self._dense, self._dense_step = dense.after, None

    def _ran(self, step: Step) -> Step:
        """The dense block with what it gives for all rows."""
        if self._dense_step is None:
            self._dense_step = self._stream(step, self._dense)
            self._dense_step.advance()
        return self._dense_step

    def _stream(self, step: Step, before: States, block: nn.Module | None = None) -> Step:
        after = self._make(len(self._calls))
        return Step(
            step.number, step.path, block or step.block, step.chain, self._calls, before, after
        )


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
class BlockProblem:
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

    def error(self, batches: Sequence[Batch]) -> float:
        """Of the block as it is: the weighted square of its error over that of what it adds."""
        with evaluating(self.block):
            parts = [self._squares(i) for batch in batches for i in batch]
        total = sum(float(square) for _, square in parts)
        return sum(float(error) for error, _ in parts) / total if total else 0.0

    def backward(self, batch: Batch, scale: float) -> None:
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
