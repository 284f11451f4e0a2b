"""How are gradients taken with respect to what blocks gave, and to no parameter?"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from ditprune.calls import Call, map_leaves
from ditprune.denoiser.replay import evaluating


@contextmanager
def frozen(denoiser: nn.Module) -> Iterator[None]:
    """Eval mode while the block runs, and no parameter gets a gradient."""
    before = [(parameter, parameter.requires_grad) for parameter in denoiser.parameters()]
    denoiser.requires_grad_(False)
    try:
        with evaluating(denoiser):
            yield
    finally:
        for parameter, requires_grad in before:
            parameter.requires_grad_(requires_grad)


def with_gradients(outputs: Any) -> Any:
    def leaf_of(leaf: Any) -> Any:
        is_floating = isinstance(leaf, Tensor) and leaf.is_floating_point()
        return leaf.detach().requires_grad_() if is_floating else leaf

    return map_leaves(leaf_of, outputs)


def floating(outputs: Any) -> list[Tensor]:
    leaves = Call((outputs,)).leaves()
    return [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point()]
