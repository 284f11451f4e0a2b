"""May a layer's weight be written, so that the layer multiplies with what was written?

One rule for all that writes: a plain tensor with values, of the layer's shape, that no other layer
reads. All else has its reason.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from ditprune.errors import ModelError
from ditprune.targets.matrix import as_matrix, expected_shape
from ditprune.targets.wrapped import base_of, is_adapted

PARAMETRISED = (
    "its weight is computed by torch.nn.utils.parametrize; call "
    "remove_parametrizations(layer, 'weight') first"
)
COMPUTED = (
    "its weight is computed before each call (weight_norm, spectral_norm, torch's pruning); "
    "remove that first"
)
QUANTISED = "its weight is quantised; prune first, then quantise"
ADAPTED = (
    "under an adapter that computes with the weight; merge it and remove it first "
    "(pipe.fuse_lora(), then pipe.unload_lora_weights())"
)
EXPANDED = "its weight repeats the same memory; store a copy (weight.clone())"
INFERENCE = "its weight was made under torch.inference_mode(); load the model outside of it"
OFFLOADED = (
    "its weight is offloaded: hooks bring it before each call and what is written is lost; "
    "load the model without offloading it by layers (enable_model_cpu_offload() is fine)"
)
NO_VALUES = "its weight is on the meta device, without values; load the model with its weights"

_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def obstacle(layer: nn.Module) -> str:
    """Why the weight of a Linear or a convolution may not be written; empty if it may.

    Says nothing of values, so that plans can be made on the meta device; see `no_values`.
    """
    layer = base_of(layer)
    if is_adapted(layer):
        return ADAPTED
    if is_parametrized(layer, "weight"):
        return PARAMETRISED
    weight = layer._parameters.get("weight")
    if weight is None:
        has_own = isinstance(vars(layer).get("weight"), Tensor)
        return COMPUTED if has_own else QUANTISED
    if not weight.is_floating_point() or tuple(weight.shape[:2]) != expected_shape(layer):
        return QUANTISED
    if weight.dtype not in _DTYPES:
        return (
            f"its weight is stored as {weight.dtype} (quantised, or cast at each call); load it "
            "in float32, bfloat16 or float16, and cast after pruning"
        )
    return _memory_obstacle(layer, weight)


def _memory_obstacle(layer: nn.Module, weight: Tensor) -> str:
    """Why writing into this tensor would not reach the layer, or reach too much."""
    if type(weight) is not nn.Parameter and not _is_fake(weight):
        return (
            f"its weight is a {type(weight).__name__}, a tensor subclass: what is written into it "
            "can go to a copy; prune the plain weight first (before quantising or sharding it)"
        )
    if layer.weight is not weight:
        return COMPUTED
    if any(step == 0 and size > 1 for step, size in zip(weight.stride(), weight.shape)):  # noqa: B905
        return EXPANDED
    return INFERENCE if weight.is_inference() else ""


def no_values(layer: nn.Module) -> str:
    """Why there are no values to read or to write; empty if there are."""
    layer = base_of(layer)
    weight = layer._parameters.get("weight")
    if weight is None or not (weight.is_meta or _is_fake(weight)):
        return ""
    return OFFLOADED if hasattr(layer, "_hf_hook") else NO_VALUES


def tied(denoiser: nn.Module) -> dict[int, str]:
    """Why it is no layer's own weight, by the id of each layer that shares it with another.

    Weights are shared if they are one tensor, or if they overlap in memory.
    """
    spans = sorted(_spans(denoiser), key=lambda span: span[:3])
    reasons: dict[int, str] = {}
    for before, after in zip(spans, spans[1:]):  # noqa: B905
        if before[0] == after[0] and after[1] < before[2]:
            for (*_, name, layer), (*_, other, _) in ((before, after), (after, before)):
                reasons[id(layer)] = _tied_to(other)
    return reasons


def _tied_to(other: str) -> str:
    return f"its weight is also that of {other}; give each its own copy to prune them"


def _spans(denoiser: nn.Module) -> Iterator[tuple[str, int, int, str, nn.Module]]:
    """(device, first byte, end, name, layer) of every plain parameter."""
    for name, module in denoiser.named_modules():
        for leaf, tensor in module._parameters.items():
            if tensor is None or type(tensor) is not nn.Parameter or not tensor.numel():
                continue
            owner = name if leaf == "weight" else f"{name}.{leaf}"
            if tensor.is_meta:
                yield "meta", id(tensor), id(tensor) + 1, owner, module
                continue
            steps = zip(tensor.shape, tensor.stride())  # noqa: B905
            num_items = 1 + sum((size - 1) * step for size, step in steps)
            start = tensor.data_ptr()
            end = start + num_items * tensor.element_size()
            yield str(tensor.device), start, end, owner, module


def refuse_unwritable(denoiser: nn.Module, names: Iterable[str]) -> None:
    """Raises ModelError if a layer of these names has no values, or may not be written."""
    shared = tied(denoiser)
    reasons = {}
    for name in names:
        layer = denoiser.get_submodule(name)
        reason = obstacle(layer) or no_values(layer) or shared.get(id(base_of(layer)), "")
        if reason:
            reasons[name] = reason
    if reasons:
        first, reason = next(iter(reasons.items()))
        more = f" (and {len(reasons) - 1} more layers like it)" if len(reasons) > 1 else ""
        raise ModelError(f"{first}{more}: {reason}")


@torch.no_grad()
def check_written(denoiser: nn.Module, name: str, written: Tensor, before: Tensor) -> None:
    """Read a layer's weight back from the parameter that the layer multiplies with.

    Args:
        written: what was to be written, [C_out, C_in].
        before: the weight before that; it is put back where the layer holds something else.

    Raises ModelError.
    """
    weight = base_of(denoiser.get_submodule(name))._parameters["weight"]
    assert weight is not None
    held = as_matrix(weight.detach())
    same = (held == written) | (held.isnan() & written.isnan())
    num_other = int((~same).sum())
    if num_other:
        held.copy_(before)
        raise ModelError(
            f"{name}: {num_other} of {held.numel()} weights are not what was written into them; "
            "this layer is as it was before, and the layers before it are pruned: load the model "
            f"again, with plain weights ({type(weight).__name__} here), and report it"
        )


def _is_fake(weight: Tensor) -> bool:
    """Whether it is one of torch's fake tensors, which have no values either."""
    return type(weight).__name__ == "FakeTensor"
