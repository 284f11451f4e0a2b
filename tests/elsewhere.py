"""Tensors on a device that is not there: they compute on the CPU, and meet no CPU tensor.

As with CUDA, an operation on tensors of both places is an error, but for copies from one to the
other, indices, and numbers (tensors without axes).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

DEVICE = torch.device("meta")  # one that every build of torch has, and that is not the CPU
_aten = torch.ops.aten
_COPIES = {
    _aten.copy_.default,
    _aten._to_copy.default,
    _aten.index.Tensor,
    _aten.index_put_.default,
}


class Elsewhere(Tensor):
    """A tensor of that device, around one of the CPU."""

    held: Tensor
    is_meta = False  # it has values

    @staticmethod
    def __new__(cls, held: Tensor) -> Elsewhere:
        tensor = Tensor._make_wrapper_subclass(
            cls, held.size(), held.stride(), held.storage_offset(), dtype=held.dtype, device=DEVICE
        )
        tensor.held = held.detach()
        return tensor

    @classmethod
    def __torch_dispatch__(cls, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(op, args, kwargs or {})

    def tolist(self) -> Any:
        return self.held.tolist()

    def __repr__(self) -> str:
        return f"Elsewhere({self.held!r})"


class ElsewhereMode(TorchDispatchMode):
    """Lets tensors be made there while it is on."""

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(op, args, kwargs or {})


def _run(op: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    tensors = [t for t in tree_flatten((args, kwargs))[0] if isinstance(t, Tensor)]
    there = any(isinstance(t, Elsewhere) for t in tensors)
    here = [t for t in tensors if not isinstance(t, Elsewhere) and t.ndim]
    if there and here and op not in _COPIES:
        raise RuntimeError(f"{op}: expected all tensors on one device, found {DEVICE} and cpu")
    device = kwargs.get("device")
    is_there = isinstance(args[0], Elsewhere) if op is _aten.copy_.default else there
    if device is not None:
        is_there = torch.device(device).type == DEVICE.type
        kwargs = {**kwargs, "device": torch.device("cpu")}
    held = tree_map(lambda t: t.held if isinstance(t, Elsewhere) else t, (args, kwargs))
    result = op(*held[0], **held[1])
    by_held = {id(t.held): t for t in tensors if isinstance(t, Elsewhere)}

    def wrapped(value: Any) -> Any:
        if not isinstance(value, Tensor) or isinstance(value, Elsewhere):
            return value
        return by_held[id(value)] if id(value) in by_held else Elsewhere(value)

    return tree_map(wrapped, result) if is_there else result


def move_(denoiser: nn.Module) -> nn.Module:
    """Put a denoiser's parameters and buffers there."""
    for module in denoiser.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = nn.Parameter(Elsewhere(parameter.detach()))
        for name, buffer in module._buffers.items():
            module._buffers[name] = None if buffer is None else Elsewhere(buffer)
    return denoiser
