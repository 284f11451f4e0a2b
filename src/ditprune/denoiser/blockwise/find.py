"""Can a denoiser run one block at a time? Its blocks chain where each needs the one before alone,
or a few earlier ones beside it.

That is tried: a denoiser whose blocks need others predicts something else.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ditprune.calls import Call
from ditprune.denoiser.blockwise.chain import Chain
from ditprune.denoiser.blockwise.gradients import floating, frozen, with_gradients
from ditprune.denoiser.blockwise.residence import Residence
from ditprune.denoiser.capture import hooked
from ditprune.denoiser.layout import form_of
from ditprune.denoiser.replay import Prediction, evaluating, predicted, run_call
from ditprune.errors import is_out_of_memory, reason_of

_CLOSE = 1e-6  # of the largest prediction; most agree to the bit
_NEEDS_MORE = "a block needs more than the block before it gives"
_MOST_LIVE = 10  # outputs that go on together; each takes as much memory as a hidden state


@dataclass(frozen=True, eq=False)
class _Run:
    """What a denoiser did in a call.

    Args:
        order: its blocks as they ran.
        shapes: by block what it gave, with the numbers of the inputs like it for each tensor.
    """

    call: Call
    whole: Prediction
    order: tuple[str, ...]
    shapes: tuple[Any, ...]


def find_chain(
    denoiser: nn.Module, blocks: Sequence[str], calls: Sequence[Call], residence: Residence
) -> Chain | str:
    """The chain of these blocks, or in a few words why there is none.

    The first and the last call of every form are run whole, then block by block; both must predict
    the same. Where that fails, gradients tell which earlier blocks each block needs, a few at most.
    """
    ends: dict[Any, list[Call]] = {}
    for call in calls:
        form = form_of(call)
        ends[form] = [*ends.get(form, [])[:1], call]
    try:
        runs: list[_Run] = []
        for call in itertools.chain(*ends.values()):
            run = _run_whole(denoiser, blocks, call, residence)
            if isinstance(run, str):
                return run
            runs.append(run)
        return _of_runs(denoiser, runs, residence)
    except Exception as error:  # a denoiser raises what it likes
        if is_out_of_memory(error):
            raise
        return f"it does not run with stand-ins for its blocks ({reason_of(error):.80})"


def _of_runs(denoiser: nn.Module, runs: Sequence[_Run], residence: Residence) -> Chain | str:
    if not runs:
        return "there are no calls"
    if len({run.order for run in runs}) > 1:
        return "its blocks run in another way from call to call"
    shapes = []
    for path, *those in zip(runs[0].order, *(run.shapes for run in runs), strict=True):
        shape = _in_common(those)
        if isinstance(shape, Unlike):
            return f"{path} {shape}"
        shapes.append(shape)
    plain = Chain(denoiser, runs[0].order, tuple(shapes))
    whys = (_difference(plain, run, residence) for run in runs)
    if (why := next(filter(None, whys), None)) != _NEEDS_MORE:
        return why or plain
    chain = replace(plain, needs=_needs(plain, runs[0].call, residence))
    if max(len(chain.live(number)) for number in range(len(chain.blocks))) > _MOST_LIVE:
        return _NEEDS_MORE
    whys = (_difference(chain, run, residence) for run in runs)
    return next(filter(None, whys), chain)


def _run_whole(
    denoiser: nn.Module, blocks: Sequence[str], call: Call, residence: Residence
) -> _Run | str:
    seen: list[tuple[str, Any]] = []
    with residence.running(), _seeing(denoiser, blocks, seen):
        whole = predicted(run_call(denoiser, call), call)
    order = tuple(path for path, _ in seen)
    if len(set(order)) < len(order):
        return "a block runs more than once in a call"
    if missing := [path for path in blocks if path not in order]:
        return f"a call does not reach {missing[0]}"
    for path, shape in seen:
        if isinstance(shape, Unlike):
            return f"{path} {shape}"
    return _Run(call, whole, order, tuple(shape for _, shape in seen))


def _difference(chain: Chain, run: _Run, residence: Residence) -> str | None:
    """Why a call of the chain is not the denoiser's own; None where it is."""
    outputs, call = None, run.call
    with evaluating(chain.denoiser):
        for number, path in enumerate(chain.blocks):
            with residence.resident(path) as block:
                is_same = _unchanged(Call((outputs, *call.args), call.kwargs))
                got = chain.enter(number, call, outputs)
                if not is_same():
                    return f"what lies before {path} writes into what it gets"
                given = block(*got.args, **got.kwargs)
                outputs = chain.going_on(number, outputs, given)
        chained = predicted(chain.leave(call, outputs), call)
    agrees = len(run.whole) == len(chained) and all(
        _is_close(a, b) for (_, a), (_, b) in zip(run.whole, chained, strict=True)
    )
    return None if agrees else _NEEDS_MORE


def _needs(plain: Chain, call: Call, residence: Residence) -> tuple[frozenset[int], ...]:
    """Which earlier blocks each block, and what comes behind the last, needs: those whose outputs
    its inputs have gradients of.
    """
    earlier = [frozenset(range(number)) for number in range(len(plain.blocks) + 1)]
    chain, outputs = replace(plain, needs=tuple(earlier)), None
    needs = []
    for number, path in enumerate(plain.blocks):
        with residence.resident(path) as block:
            got, needed = _reaching(chain, number, outputs, partial(chain.enter, number, call))
            needs.append(needed)
            with evaluating(chain.denoiser):
                outputs = chain.going_on(number, outputs, block(*got.args, **got.kwargs))
    behind = partial(chain.leave, call)
    _, needed = _reaching(chain, len(plain.blocks), outputs, lambda given: Call((behind(given),)))
    return (*needs, needed)


def _reaching(
    chain: Chain, number: int, outputs: Any, run: Callable[[Any], Call]
) -> tuple[Call, frozenset[int]]:
    """What a run gives of these outputs, and which blocks' outputs it depends on."""
    given = with_gradients(outputs)
    with frozen(chain.denoiser), torch.enable_grad():
        got = run(given)
    by_block = given if chain.carries(number - 1) else {number - 1: given}
    leaves = [(n, leaf) for n, tree in by_block.items() for leaf in floating(tree)]
    ends = [leaf for leaf in floating(got.args) + floating(got.kwargs) if leaf.requires_grad]
    if not (leaves and ends):
        return got, frozenset()
    total = torch.stack([end.sum().double() for end in ends]).sum()
    gradients = torch.autograd.grad(total, [leaf for _, leaf in leaves], allow_unused=True)
    reached = (
        n for (n, _), gradient in zip(leaves, gradients, strict=True) if gradient is not None
    )
    return got.map(lambda leaf: leaf.detach() if isinstance(leaf, Tensor) else leaf), frozenset(
        reached
    )


def _is_close(first: Tensor, second: Tensor) -> bool:
    if first.shape != second.shape:
        return False
    scale = float(first.abs().max()) if first.numel() else 0.0
    return bool(((first - second).abs() <= _CLOSE * scale).all())


class Unlike(str):
    """Why a block's output cannot be stood in for."""


@contextmanager
def _seeing(
    denoiser: nn.Module, blocks: Sequence[str], seen: list[tuple[str, Any]]
) -> Iterator[None]:
    """Note the order in which blocks run, and what they give, while the block runs."""
    entered: dict[str, tuple[Call, Callable[[], bool]]] = {}

    def enter(path: str, _module: nn.Module, call: Call) -> None:
        entered[path] = (call, _unchanged(call))

    def leave(path: str) -> Callable[..., None]:
        def hook(_module: nn.Module, _args: Any, output: Any) -> None:
            call, is_same = entered.pop(path)
            shape = shape_of(output, call) if is_same() else Unlike("writes into its inputs")
            seen.append((path, shape))

        return hook

    with ExitStack() as stack:
        stack.enter_context(hooked({path: denoiser.get_submodule(path) for path in blocks}, enter))
        for path in blocks:
            handle = denoiser.get_submodule(path).register_forward_hook(leave(path))
            stack.callback(handle.remove)
        yield


def _unchanged(call: Call) -> Callable[[], bool]:
    """Tells later whether the tensors of a call are still what they are now."""
    leaves = [leaf for leaf in call.leaves() if isinstance(leaf, Tensor)]
    copies = [leaf.clone() for leaf in leaves]
    return lambda: all(map(torch.equal, leaves, copies))


def shape_of(output: Any, call: Call) -> Any:
    """The output with the numbers of the inputs of its shape in place of each tensor."""
    inputs = call.leaves()
    unlike: list[str] = []

    def like(leaf: Any) -> frozenset[int] | None:
        if leaf is None:
            return None
        if not isinstance(leaf, Tensor):
            unlike.append(f"gives {type(leaf).__name__}")
            return None
        numbers = frozenset(
            number
            for number, given in enumerate(inputs)
            if isinstance(given, Tensor) and (given.shape, given.dtype) == (leaf.shape, leaf.dtype)
        )
        if not numbers:
            unlike.append(f"gives {list(leaf.shape)}, and no input is as large")
        return numbers

    shape = Call((output,)).map(like).args[0]
    return Unlike(unlike[0]) if unlike else shape


def _in_common(shapes: Sequence[Any]) -> Any:
    """The number of an input that is like the output in every call, in place of each tensor."""
    by_call = [Call((shape,)).leaves() for shape in shapes]
    if len({tuple(leaf is None for leaf in leaves) for leaves in by_call}) > 1:
        return Unlike("gives another number of tensors from call to call")
    common = [None if a is None else a.intersection(*b) for a, *b in zip(*by_call, strict=True)]
    if frozenset() in common:
        return Unlike("gives tensors that are like other inputs from call to call")
    numbers = iter([numbers and min(numbers) for numbers in common])
    return Call((shapes[0],)).map(lambda _: next(numbers)).args[0]
