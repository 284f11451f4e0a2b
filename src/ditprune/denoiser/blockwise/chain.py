"""Can a denoiser run one block at a time? Its blocks chain where each needs the one before alone.

To enter a block, the denoiser's own forward runs with stand-ins: the block before gives what it
gave, those before that one give their inputs back, and the block itself keeps what it gets. So
embeddings, modulation, rotary tables, masks and whatever lies between two lists of blocks come from
the denoiser itself, whatever it does there. A denoiser whose blocks need earlier ones (long skips)
gives another prediction that way, which `find_chain` sees.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn

from ditprune.calls import Call
from ditprune.denoiser.blockwise.residence import Residence
from ditprune.denoiser.capture import hooked
from ditprune.denoiser.layout import form_of
from ditprune.denoiser.replay import evaluating, predicted, run_call
from ditprune.errors import ModelError, is_out_of_memory

_CLOSE = 1e-6  # of the largest prediction; most agree to the bit


@dataclass(frozen=True, eq=False)
class Chain:
    """Blocks in the order in which they run.

    Args:
        blocks: their paths.
        shapes: by block what it gives, with the number of an input like it in place of each tensor.
    """

    denoiser: nn.Module
    blocks: tuple[str, ...]
    shapes: tuple[Any, ...]

    def enter(self, number: int, call: Call, outputs: Any = None) -> Call:
        """What block `number` gets in a call of the denoiser.

        Args:
            outputs: what the block before gave in this call.
        """
        entered: list[Call] = []

        def keep(got: Call) -> Any:
            entered.append(got)
            raise _EnteredError

        stand_ins = {**self._before(number, outputs), self.blocks[number]: keep}
        try:
            with _standing_in(self.denoiser, stand_ins):
                self.denoiser(*call.args, **call.kwargs)
        except _EnteredError:
            return entered[0]
        raise ModelError(f"{self.blocks[number]}: a calibration call does not reach this block")

    def leave(self, call: Call, outputs: Any) -> Any:
        """The denoiser's output in a call, from what the last block gave."""
        with _standing_in(self.denoiser, self._before(len(self.blocks), outputs)):
            return self.denoiser(*call.args, **call.kwargs)

    def _before(self, number: int, outputs: Any) -> dict[str, Callable[[Call], Any]]:
        stand_ins: dict[str, Callable[[Call], Any]] = {}
        for path, shape in zip(self.blocks[: max(0, number - 1)], self.shapes, strict=False):
            stand_ins[path] = partial(_passed, shape)
        if number:
            stand_ins[self.blocks[number - 1]] = lambda got: outputs
        return stand_ins


class _EnteredError(Exception):
    """The forward has reached the block in question."""


def find_chain(
    denoiser: nn.Module, blocks: Sequence[str], calls: Sequence[Call], residence: Residence
) -> Chain | str:
    """The chain of these blocks, or in a few words why there is none.

    The first call of every form is run whole, then block by block; both must predict the same.
    """
    firsts: dict[Any, Call] = {}
    for call in calls:
        firsts.setdefault(form_of(call), call)
    chain: Chain | None = None
    for call in firsts.values():
        try:
            made = _of_call(denoiser, blocks, call, residence)
        except (RuntimeError, TypeError, ValueError, LookupError, AttributeError) as error:
            if is_out_of_memory(error):
                raise
            return f"it does not run with stand-ins for its blocks ({error!s:.80})"
        if isinstance(made, str):
            return made
        if chain is not None and (made.blocks, made.shapes) != (chain.blocks, chain.shapes):
            return "its blocks run in another way from call to call"
        chain = made
    return chain or "there are no calls"


def _of_call(
    denoiser: nn.Module, blocks: Sequence[str], call: Call, residence: Residence
) -> Chain | str:
    seen: list[tuple[str, Any]] = []
    with residence.running(), _seeing(denoiser, blocks, seen):
        whole = predicted(run_call(denoiser, call), call)
    order = tuple(path for path, _ in seen)
    if len(set(order)) < len(order):
        return "a block runs more than once in a call"
    if missing := [path for path in blocks if path not in order]:
        return f"a call does not reach {missing[0]}"
    for path, shape in seen:
        if isinstance(shape, _Unlike):
            return f"{path} {shape}"
    chain = Chain(denoiser, order, tuple(shape for _, shape in seen))
    outputs = None
    with evaluating(denoiser):
        for number, path in enumerate(order):
            with residence.resident(path) as block:
                got = chain.enter(number, call, outputs)
                outputs = block(*got.args, **got.kwargs)
        chained = predicted(chain.leave(call, outputs), call)
    is_same = len(whole) == len(chained) and all(
        _is_close(a, b) for (_, a), (_, b) in zip(whole, chained, strict=True)
    )
    return chain if is_same else "a block needs more than the block before it gives"


def _is_close(first: Tensor, second: Tensor) -> bool:
    if first.shape != second.shape:
        return False
    scale = float(first.abs().max()) if first.numel() else 0.0
    return bool(((first - second).abs() <= _CLOSE * scale).all())


class _Unlike(str):
    """Why a block's output cannot be stood in for."""


@contextmanager
def _seeing(
    denoiser: nn.Module, blocks: Sequence[str], seen: list[tuple[str, Any]]
) -> Iterator[None]:
    """Note the order in which blocks run, and what they give, while the block runs."""
    entered: dict[str, tuple[Call, list[int]]] = {}

    def enter(path: str, _module: nn.Module, call: Call) -> None:
        entered[path] = (call, _versions(call))

    def leave(path: str) -> Callable[..., None]:
        def hook(_module: nn.Module, _args: Any, output: Any) -> None:
            call, versions = entered.pop(path)
            changes = _versions(call) != versions
            shape = _Unlike("writes into its inputs") if changes else _shape_of(output, call)
            seen.append((path, shape))

        return hook

    with ExitStack() as stack:
        stack.enter_context(hooked({path: denoiser.get_submodule(path) for path in blocks}, enter))
        for path in blocks:
            handle = denoiser.get_submodule(path).register_forward_hook(leave(path))
            stack.callback(handle.remove)
        yield


def _versions(call: Call) -> list[int]:
    leaves = (leaf for leaf in call.leaves() if isinstance(leaf, Tensor))
    return [leaf._version for leaf in leaves if not leaf.is_inference()]


def _shape_of(output: Any, call: Call) -> Any:
    """The output with the number of an input of its shape in place of each tensor."""
    inputs = call.leaves()
    unlike: list[str] = []

    def like(leaf: Any) -> Any:
        if leaf is None:
            return None
        if not isinstance(leaf, Tensor):
            unlike.append(f"gives {type(leaf).__name__}")
            return None
        for number, given in enumerate(inputs):
            if isinstance(given, Tensor) and (given.shape, given.dtype) == (leaf.shape, leaf.dtype):
                return number
        unlike.append(f"gives {list(leaf.shape)}, and no input is as large")
        return None

    shape = Call((output,)).map(like).args[0]
    return _Unlike(unlike[0]) if unlike else shape


def _passed(shape: Any, got: Call) -> Any:
    inputs = got.leaves()
    return Call((shape,)).map(lambda leaf: None if leaf is None else inputs[leaf]).args[0]


@contextmanager
def _standing_in(
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
