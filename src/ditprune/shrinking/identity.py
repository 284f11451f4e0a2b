"""What would a block be that adds nothing? Each of its outputs would be one of its inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn

from ditprune.calls import Call
from ditprune.denoiser.blockwise.chain import passed, standing_in
from ditprune.denoiser.blockwise.find import Unlike, shape_of

Watch = Callable[[str, Call, Any], None]


def passes_on(output: Any, got: Call) -> Any | Unlike:
    """The output with the number of an input in place of each tensor: the one that is nearest to
    it, of those of its shape. Or in a few words why there is none.
    """
    shape = shape_of(output, got)
    if isinstance(shape, Unlike):
        return shape
    inputs, leaves = got.leaves(), iter(Call((output,)).leaves())

    def nearest(numbers: frozenset[int] | None) -> int | None:
        leaf = next(leaves)
        if numbers is None:
            return None
        return min(sorted(numbers), key=lambda n: float((inputs[n] - leaf).detach().norm()))

    return Call((shape,)).map(nearest).args[0]


def adding_nothing(denoiser: nn.Module, shapes: Mapping[str, Any]) -> AbstractContextManager[None]:
    """While the `with` block runs, these blocks give their inputs back.

    Args:
        shapes: by block, from `passes_on`.
    """
    return standing_in(denoiser, {path: partial(passed, shape) for path, shape in shapes.items()})


def added_by(output: Any, got: Call) -> list[Tensor]:
    """What a block adds: its floating outputs less the inputs that they continue.

    An output that continues none is left out.
    """
    shape = passes_on(output, got)
    if isinstance(shape, Unlike):
        return []
    inputs = got.leaves()
    pairs = zip(Call((output,)).leaves(), Call((shape,)).leaves(), strict=True)
    return [
        leaf - inputs[number]
        for leaf, number in pairs
        if number is not None and leaf.is_floating_point()
    ]


@contextmanager
def watching(denoiser: nn.Module, blocks: Sequence[str], see: Watch) -> Iterator[None]:
    """While the block runs, `see(path, call, output)` is called after each call of these blocks."""

    def hook_of(path: str) -> Callable[..., None]:
        return lambda _module, args, kwargs, output: see(path, Call(args, kwargs), output)

    with ExitStack() as stack:
        for path in blocks:
            block = denoiser.get_submodule(path)
            handle = block.register_forward_hook(hook_of(path), with_kwargs=True)
            stack.callback(handle.remove)
        yield
