"""What enters a layer, and how many tokens: the same hook for everything that counts them."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

from torch import Tensor, nn

Key = TypeVar("Key", bound=Hashable)


def input_of(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
    """The input of a Linear or a convolution, however its call names it."""
    return args[0] if args else kwargs["input"]


@contextmanager
def counting_tokens(layers: Mapping[Key, nn.Module]) -> Iterator[dict[Key, list[int]]]:
    """How many tokens each layer gets, call by call, while the block runs; no hook stays behind.

    Args:
        layers: Linears, or pointwise convolutions, of which every position is a token; by any key.
    """
    counts: dict[Key, list[int]] = {key: [] for key in layers}

    def watch(own: list[int]) -> Callable[..., None]:
        def hook(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            weight: Any = layer.weight
            own.append(input_of(args, kwargs).numel() // weight.shape[1])

        return hook

    handles = [
        layer.register_forward_pre_hook(watch(counts[key]), with_kwargs=True)
        for key, layer in layers.items()
    ]
    try:
        yield counts
    finally:
        for handle in handles:
            handle.remove()
