"""How does one go through the blocks of a denoiser, forwards or backwards, one at a time?"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ditprune.calls import Call
from ditprune.denoiser.blockwise.chain import Chain
from ditprune.denoiser.blockwise.gradients import floating, frozen, with_gradients
from ditprune.denoiser.blockwise.residence import Residence
from ditprune.denoiser.blockwise.states import States
from ditprune.denoiser.replay import evaluating

Make = Callable[[int], States]
See = Callable[[Call], None]


def _unseen(_call: Call) -> None:
    """Nobody is told of the denoiser's call that a block is about to run for."""


@dataclass(eq=False)
class Step:
    """One block, resident, with what it gets in every call.

    Args:
        number: of the block, from 0.
        before: by call what goes on after the block before.
        after: by call what goes on after this block; full once `advance` has run.
    """

    number: int
    path: str
    block: nn.Module
    chain: Chain
    calls: Sequence[Call]
    before: States
    after: States
    has_run: bool = field(default=False)

    def entered(self, see: See = _unseen) -> Iterator[Call]:
        """What the block gets, call by call.

        Args:
            see: is told the denoiser's call before each.
        """
        for i in range(len(self.calls)):
            with evaluating(self.chain.denoiser):
                got = self.enter(i, see)
            yield got

    def run(self, see: See = _unseen) -> None:
        """Run the block on every call, for hooks of the caller; nothing is kept."""
        with evaluating(self.chain.denoiser):
            for i in range(len(self.calls)):
                got = self.enter(i, see)
                self.block(*got.args, **got.kwargs)

    def advance(self, see: See = _unseen) -> None:
        """Run the block on every call, and keep what it gives for the block after it."""
        with evaluating(self.chain.denoiser):
            for i in range(len(self.calls)):
                got = self.enter(i, see)
                given = self.block(*got.args, **got.kwargs)
                outputs = self.before[i] if self.number and self.chain.needs else None
                self.after[i] = self.chain.going_on(self.number, outputs, given)
        self.has_run = True

    def given(self, i: int) -> Any:
        """What the block gave in a call, once `advance` has run."""
        after = self.after[i]
        return after[self.number] if self.chain.carries(self.number) else after

    def enter(self, i: int, see: See = _unseen) -> Call:
        """What the block gets in one call; to be asked for in eval mode."""
        call = self.calls[i]
        see(call)
        got = self.chain.enter(self.number, call, self.before[i] if self.number else None)
        return Call(got.args, got.kwargs, call.place, call.denoiser)


def forwards(
    chain: Chain, calls: Sequence[Call], residence: Residence, make: Make = States
) -> Generator[Step, None, None]:
    """Every block in turn, as it is; what becomes of it in a step does not reach the next.

    `advance` may run under hooks of the caller, before the block is changed; where it has not run,
    the block runs as the step ends.

    Args:
        make: gives the place for the hidden states of so many calls; two are open at once.
    """
    before = States(len(calls))
    for step in _steps(chain, calls, residence, before, make, range(len(chain.blocks))):
        yield step
        if not step.has_run:
            step.advance()
        before.close()
        before = step.after
    before.close()


@dataclass(eq=False)
class Trace:
    """What goes on after every block, in every call. What was let go is found anew: the blocks from
    the last one before that was kept run again.

    Args:
        every: the outputs of one block in so many are kept, and of the last.
    """

    chain: Chain
    calls: Sequence[Call]
    residence: Residence
    make: Make
    every: int
    states: dict[int, States] = field(default_factory=dict)

    def __getitem__(self, number: int) -> States:
        if number not in self.states:
            before = max((n for n in self.states if n < number), default=-1)
            start = self.states.get(before) or States(len(self.calls))
            numbers = range(before + 1, number + 1)
            for step in _steps(self.chain, self.calls, self.residence, start, self.make, numbers):
                step.advance()
                self.states[step.number] = step.after
        return self.states[number]

    def close(self, number: int) -> None:
        """Let go of what goes on after a block."""
        if number in self.states:
            self.states.pop(number).close()

    def is_kept(self, number: int) -> bool:
        """Whether it stays from the way forwards."""
        return (number + 1) % self.every == 0 or number == len(self.chain.blocks) - 1


def trace(
    chain: Chain, calls: Sequence[Call], residence: Residence, make: Make = States,
    told: Callable[[int], None] = lambda number: None, every: int = 1,
) -> Trace:  # fmt: skip
    """Run every block in turn.

    Args:
        told: is told the number of every block that has run.
        every: keeps what goes on after one block in so many; the way back takes less room and one
            pass more.
    """
    seen = Trace(chain, calls, residence, make, every)
    for number in range(len(chain.blocks)):
        seen[number]
        if number and not seen.is_kept(number - 1):
            seen.close(number - 1)
        told(number)
    return seen


def _steps(
    chain: Chain, calls: Sequence[Call], residence: Residence, before: States, make: Make,
    numbers: Iterable[int],
) -> Iterator[Step]:  # fmt: skip
    for number in numbers:
        path = chain.blocks[number]
        with residence.resident(path) as block:
            step = Step(number, path, block, chain, calls, before, make(len(calls)))
            yield step
        before = step.after


@dataclass(eq=False)
class BackwardStep:
    """One block, resident, on the way back: `run` takes gradients through it, call by call.

    Args:
        before: by call what the block before gave.
        gradients: by call, for each tensor that the block gave; those that the block before gave
            take their place.
    """

    number: int
    path: str
    block: nn.Module
    chain: Chain
    calls: Sequence[Call]
    before: States | None
    gradients: list[list[Tensor | None]]

    def given_gradients(self) -> list[list[Tensor | None]]:
        """By call, those of the floating tensors that this block gave."""
        count = sum(leaf is not None for leaf in Call((self.chain.shapes[self.number],)).leaves())
        return [gradients[len(gradients) - count :] for gradients in self.gradients]

    def run(self, see: See = _unseen) -> None:
        """A forward and a backward pass of the block for each call; parameters get no gradients.

        Args:
            see: is told the denoiser's call before each.
        """
        with frozen(self.chain.denoiser), torch.enable_grad():
            for i, call in enumerate(self.calls):
                see(call)
                outputs = None if self.before is None else with_gradients(self.before[i])
                got = self.chain.enter(self.number, call, outputs)
                given = self.block(*got.args, **got.kwargs)
                going_on = self.chain.going_on(self.number, outputs, given)
                _backward(going_on, self.gradients[i])
                self.gradients[i] = [leaf.grad for leaf in floating(outputs)]


def backwards(
    chain: Chain, calls: Sequence[Call], residence: Residence, seen: Trace,
    signed: Callable[[Any, Call], Tensor],
) -> Generator[BackwardStep, None, None]:  # fmt: skip
    """Every block from the last to the first; `run` is called in every step.

    Args:
        seen: from `trace`; closed on the way.
        signed: the number whose gradient is taken, from the denoiser's output in a call.
    """
    gradients = []
    with frozen(chain.denoiser), torch.enable_grad():
        for i, call in enumerate(calls):
            outputs = with_gradients(seen[len(chain.blocks) - 1][i])
            total = signed(chain.leave(call, outputs), call)
            if total.requires_grad:
                total.backward()
            gradients.append([leaf.grad for leaf in floating(outputs)])
    for number, path in reversed([*enumerate(chain.blocks)]):
        seen.close(number)
        before = seen[number - 1] if number else None
        with residence.resident(path) as block:
            yield BackwardStep(number, path, block, chain, calls, before, gradients)


def _backward(outputs: Any, gradients: Sequence[Tensor | None]) -> None:
    pairs = [
        (output, gradient)
        for output, gradient in zip(floating(outputs), gradients, strict=True)
        if gradient is not None and output.requires_grad
    ]
    if pairs:
        torch.autograd.backward([a for a, _ in pairs], [b for _, b in pairs])
