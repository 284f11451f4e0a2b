"""How is a module tried out in another shape without being changed? In a twin with its tensors."""

from __future__ import annotations

import types
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

_HALF = (torch.bfloat16, torch.float16)
# What libraries put around a forward, bound to the module that it was put around.
_WRAPPING = ("_hf_hook", "_diffusers_hook")


def twin_of(module: nn.Module, seen: dict[int, nn.Module] | None = None) -> nn.Module:
    """A module tree of its own with the same tensors, without hooks, not compiled.

    Putting other tensors or numbers into it leaves the module as it is.
    """
    seen = {} if seen is None else seen
    if id(module) in seen:
        return seen[id(module)]
    twin = module.__new__(type(module))
    seen[id(module)] = twin
    state = {name: _shallow(value) for name, value in vars(module).items()}
    for name in state:
        if name.endswith("_hooks") or "_hooks_" in name:
            state[name] = type(state[name])()
    state["_compiled_call_impl"] = None
    forward = state.pop("forward", None)
    twin.__dict__ = state
    twin._modules = {n: m if m is None else twin_of(m, seen) for n, m in module._modules.items()}
    if forward is not None and not any(hasattr(module, name) for name in _WRAPPING):
        is_bound = getattr(forward, "__self__", None) is module
        twin.forward = types.MethodType(forward.__func__, twin) if is_bound else forward
    return twin


def _shallow(value: Any) -> Any:
    return type(value)(value) if type(value) in (dict, list, set) else value


def in_float32(module: nn.Module) -> nn.Module:
    """A twin whose half-precision tensors are float32."""
    twin = twin_of(module)
    for part in twin.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None and parameter.dtype in _HALF:
                part._parameters[name] = nn.Parameter(parameter.float(), requires_grad=False)
        for name, buffer in part._buffers.items():
            part._buffers[name] = None if buffer is None else widened(buffer)
    return twin


def widened(leaf: Any) -> Any:
    """A copy of a tensor, half precision as float32; anything else as it is."""
    if not isinstance(leaf, Tensor):
        return leaf
    return leaf.float() if leaf.dtype in _HALF else leaf


def without_columns(module: nn.Module, columns: Mapping[str, Tensor]) -> nn.Module:
    """A twin in which layers of these names multiply these input channels with zero."""
    twin = twin_of(module)
    for name, places in columns.items():
        layer = twin.get_submodule(name)
        weight = layer.get_parameter("weight").detach().clone()
        weight[:, places.to(weight.device)] = 0
        layer._parameters["weight"] = nn.Parameter(weight, requires_grad=False)
    return twin


@contextmanager
def exactly(module: nn.Module) -> Iterator[None]:
    """The same random numbers in every such block, and products in full float32."""
    precision = torch.get_float32_matmul_precision()
    devices = {p.device for p in module.parameters() if p.device.type == "cuda"}
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.random.fork_rng([*devices]), torch.backends.cudnn.flags(allow_tf32=False):
            torch.manual_seed(0)
            yield
    finally:
        torch.set_float32_matmul_precision(precision)
