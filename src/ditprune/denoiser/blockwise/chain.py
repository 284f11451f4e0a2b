"""How is one block of a denoiser entered without running the others?

The denoiser's own forward runs with stand-ins: the block before gives what it gave, those before
that one give their inputs back, and the block itself keeps what it gets. So embeddings, modulation,
rotary tables, masks and whatever lies between two lists of blocks come from the denoiser itself,
whatever it does there. Where blocks need earlier ones, what these gave is carried on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import nn

from ditprune.calls import Call
from ditprune.errors import ModelError


@dataclass(frozen=True, eq=False)
class Chain:
    """Blocks in the order in which they run.

    Args:
        blocks: their paths.
        shapes: by block what it gives, with the number of an input like it in place of each tensor.
        needs: by block, and by what comes behind the last, the numbers of the earlier blocks whose
            outputs it needs; empty where each needs the block before alone.
    """

    denoiser: nn.Module
    blocks: tuple[str, ...]
    shapes: tuple[Any, ...]
    needs: tuple[frozenset[int], ...] = ()

    def enter(self, number: int, call: Call, outputs: Any = None) -> Call:
        """What block `number` gets in a call of the denoiser.

        Args:
            outputs: what goes on after the block before, in this call.
        """
        entered: list[Call] = []

        def keep(got: Call) -> Any:
            entered.append(got)
            raise _EnteredError

        stand_ins = {**self._before(number, outputs), self.blocks[number]: keep}
        try:
            with standing_in(self.denoiser, stand_ins):
                self.denoiser(*call.args, **call.kwargs)
        except _EnteredError:
            return entered[0]
        raise ModelError(f"{self.blocks[number]}: a calibration call does not reach this block")

    def reaching(self, number: int) -> AbstractContextManager[None]:
        """The denoiser reaches block `number` without those before it, which give their inputs back
        while the `with` block runs. What does not depend on hidden states is what it always is.
        """
        return standing_in(self.denoiser, self._passing(number))

    def leave(self, call: Call, outputs: Any) -> Any:
        """The denoiser's output in a call, from what goes on after the last block."""
        with standing_in(self.denoiser, self._before(len(self.blocks), outputs)):
            return self.denoiser(*call.args, **call.kwargs)

    def carries(self, number: int) -> bool:
        """Whether more than the outputs of block `number` goes on after it."""
        return len(self.live(number)) > 1

    def live(self, number: int) -> frozenset[int]:
        """The blocks whose outputs go on after block `number`: its own, and what is needed yet."""
        later = frozenset().union(*self.needs[number + 1 :])
        return frozenset(n for n in later if n < number) | {number}

    def going_on(self, number: int, outputs: Any, given: Any) -> Any:
        """What goes on after block `number`: what it gave, and what is carried.

        Args:
            outputs: what went on after the block before.
        """
        if not self.carries(number):
            return given
        before = outputs if self.carries(number - 1) else {number - 1: outputs}
        live = self.live(number)
        return {**{n: output for n, output in before.items() if n in live}, number: given}

    def _before(self, number: int, outputs: Any) -> dict[str, Callable[[Call], Any]]:
        stand_ins = self._passing(number)
        if number:
            given = outputs if self.carries(number - 1) else {number - 1: outputs}
            stand_ins |= {self.blocks[n]: partial(_given, output) for n, output in given.items()}
        return stand_ins

    def _passing(self, number: int) -> dict[str, Callable[[Call], Any]]:
        blocks = zip(self.blocks[:number], self.shapes, strict=False)
        return {path: partial(passed, shape) for path, shape in blocks}


class _EnteredError(BaseException):
    """The forward has reached the block in question; no `except Exception` of it sees this."""


def _given(output: Any, _got: Call) -> Any:
    return output


def passed(shape: Any, got: Call) -> Any:
    inputs = got.leaves()
    return Call((shape,)).map(lambda leaf: None if leaf is None else inputs[leaf]).args[0]


@contextmanager
def standing_in(
    denoiser: nn.Module, stand_ins: Mapping[str, Callable[[Call], Any]]
) -> Iterator[None]:
    """While the block runs, these functions take the place of the forwards of these modules."""

    def forward_of(stand_in: Callable[[Call], Any]) -> Callable[..., Any]:
        return lambda *args, **kwargs: stand_in(Call(args, kwargs))

    with ExitStack() as stack:
        for path, stand_in in stand_ins.items():
            module = denoiser.get_submodule(path)
            before = vars(module).get("forward")
            stack.callback(_restore, module, before)
            module.forward = forward_of(stand_in)
        yield


def _restore(module: nn.Module, forward: Any) -> None:
    if forward is None:
        del module.forward
    else:
        module.forward = forward
