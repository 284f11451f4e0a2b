"""How does a module tree become smaller in place? Its tensors, and what its layers say of them."""

from __future__ import annotations

from collections.abc import Mapping, MutableSequence
from typing import Any

import torch
from torch import Tensor, nn

from ditprune.errors import ModelError
from ditprune.targets.matrix import CONVOLUTIONS


@torch.no_grad()
def resize_(
    module: nn.Module,
    tensors: Mapping[str, Tensor],
    numbers: Mapping[str, Mapping[str, int]],
) -> None:
    """Give a module smaller tensors and numbers.

    Args:
        tensors: by name, what takes the place of a parameter or buffer; values or meta. Layers say
            the sizes of their new weights afterwards.
        numbers: by module, what its attributes become; `split_sizes.1` is an item of a list.

    Raises ModelError for a name that the module does not have, and for a number that grows or is
    none.
    """
    for name, tensor in tensors.items():
        path, _, leaf = name.rpartition(".")
        owner = _submodule(module, path)
        old = _set_tensor(owner, leaf, name, tensor)
        if leaf == "weight":
            _say_sizes(owner, old, tensor.shape)
    for path, values in numbers.items():
        for name, value in values.items():
            set_number(_submodule(module, path), name, value, path)


def number_of(module: nn.Module, name: str) -> int | None:
    """A whole number of a module, `name` or `list.index`; None where it has no such number."""
    attribute, _, index = name.partition(".")
    value: Any = vars(module).get(attribute)
    if index:
        items = value if isinstance(value, (list, tuple)) else ()
        value = items[int(index)] if index.isdecimal() and int(index) < len(items) else None
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def set_number(module: nn.Module, name: str, value: int, path: str = "") -> None:
    """Make a number of a module smaller. Raises ModelError where it has none, or a smaller one."""
    old = number_of(module, name)
    if old is None:
        raise ModelError(f"{path}: {type(module).__name__} has no number '{name}'")
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= old:
        raise ModelError(f"{path}: {name} is {value!r}; expected a whole number, 1 to {old}")
    attribute, _, index = name.partition(".")
    if not index:
        setattr(module, attribute, value)
        return
    items: Any = vars(module)[attribute]
    if isinstance(items, MutableSequence):
        items[int(index)] = value
        return
    changed = [value if i == int(index) else item for i, item in enumerate(items)]
    setattr(module, attribute, type(items)(changed))


def _submodule(module: nn.Module, path: str) -> nn.Module:
    try:
        return module.get_submodule(path)
    except AttributeError as error:
        raise ModelError(f"{type(module).__name__} has no module '{path}'") from error


def _set_tensor(owner: nn.Module, leaf: str, name: str, tensor: Tensor) -> torch.Size:
    """Puts a tensor in the place of another; gives the shape that this one had."""
    parameter, buffer = owner._parameters.get(leaf), owner._buffers.get(leaf)
    old = parameter if parameter is not None else buffer
    if old is None:
        raise ModelError(f"{type(owner).__name__} has no tensor '{name}'")
    if old.ndim != tensor.ndim or any(a > b for a, b in zip(tensor.shape, old.shape, strict=True)):
        raise ModelError(f"{name} becomes {list(tensor.shape)}; expected at most {list(old.shape)}")
    if parameter is not None:
        owner._parameters[leaf] = nn.Parameter(tensor, requires_grad=parameter.requires_grad)
    else:
        owner._buffers[leaf] = tensor
    return old.shape


def _say_sizes(layer: nn.Module, old: torch.Size, new: torch.Size) -> None:
    """A layer says the sizes of its weight, whose shape was another one.

    Subclasses of Linear that say how many outputs are left after a gate go on doing so.
    """
    if isinstance(layer, nn.Linear):
        layer.out_features = layer.out_features * new[0] // old[0]
        layer.in_features = new[1]
    elif isinstance(layer, CONVOLUTIONS):
        if layer.groups > 1:
            layer.groups = layer.groups * new[0] // old[0]
        layer.out_channels, layer.in_channels = new[0], new[1] * layer.groups
    elif isinstance(layer, nn.Embedding):
        layer.num_embeddings, layer.embedding_dim = new
    elif isinstance(getattr(layer, "normalized_shape", None), tuple):
        layer.normalized_shape = tuple(new)  # type: ignore[assignment]
    elif isinstance(getattr(layer, "dim", None), torch.Size):  # diffusers' RMSNorm
        layer.dim = new  # type: ignore[assignment]
