"""May a layer's weight be written, so that the layer multiplies with what was written?

One rule for all that writes: a plain tensor with values, of the layer's shape, that nothing
outside the blocks reads. All else has its reason.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from ditprune.errors import ModelError
from ditprune.targets.blocks import Block, find_blocks
from ditprune.targets.matrix import as_matrix, expected_shape
from ditprune.targets.wrapped import inner_layer, is_adapted

PARAMETRISED = (
    "its weight is computed by torch.nn.utils.parametrize; call "
    "remove_parametrizations(layer, 'weight') first"
)
COMPUTED = (
    "its weight is computed before each call (weight_norm, spectral_norm, torch's pruning); "
    "remove that first"
)
QUANTISED = "its weight is quantised; prune first, then quantise"
CAST = (
    "its weight is stored in 8 bits and cast at each call (enable_layerwise_casting); prune first, "
    "then call that"
)
ADAPTED = (
    "under an adapter that computes with the weight; merge it and remove it first "
    "(pipe.fuse_lora(), then pipe.unload_lora_weights())"
)
EXPANDED = "its weight repeats the same memory; store a copy (weight.clone())"
INFERENCE = (
    "its weight was made under torch.inference_mode() and is read-only outside of it; load the "
    "model outside of torch.inference_mode()"
)
OFFLOADED = (
    "its weight is offloaded: hooks bring it before each call and what is written is lost; "
    "load the model without offloading it by layers (enable_model_cpu_offload() is fine)"
)
NO_VALUES = "its weight is on the meta device, without values; load the model with its weights"

# Names of C_out and C_in in layers, and in those of older quantisers.
_SIZES = (("out_features", "outfeatures"), ("in_features", "infeatures"))
_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def obstacle(layer: nn.Module) -> str:
    """Why the weight of a Linear or a convolution may not be written; empty if it may.

    Says nothing of values, so that plans can be made on the meta device; see `no_values`.
    """
    layer = inner_layer(layer)
    if packed_size(layer):
        return QUANTISED
    if is_adapted(layer):
        return ADAPTED
    if is_parametrized(layer, "weight"):
        return PARAMETRISED
    weight = layer._parameters.get("weight")
    if weight is None:
        has_own = isinstance(vars(layer).get("weight"), Tensor)
        return COMPUTED if has_own else QUANTISED
    if not weight.is_floating_point():
        return QUANTISED
    if tuple(weight.shape[:2]) != (shape := expected_shape(layer)):
        return (
            f"its weight is {list(weight.shape)} and not {list(shape or ())}, as in packed or "
            "transposed weights; prune the plain weight first"
        )
    if weight.dtype not in _DTYPES and _is_cast(layer):
        return CAST
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
    return ""


def no_values(layer: nn.Module) -> str:
    """Why there are no values to read or to write; empty if there are."""
    layer = inner_layer(layer)
    weight = layer._parameters.get("weight")
    if weight is None or not (weight.is_meta or _is_fake(weight)):
        return ""
    return OFFLOADED if hasattr(layer, "_hf_hook") else NO_VALUES


def tied(denoiser: nn.Module, blocks: Sequence[Block]) -> dict[int, str]:
    """Why a weight is not a layer's own, by the id of the layer.

    Layers of the blocks that share one tensor among them alone multiply with the same zeros, and
    are one target. A tensor that is also outside the blocks, or that overlaps another one in
    memory, may not be written.
    """
    owners: dict[int, list[_Owner]] = {}
    for owner in _owners(denoiser):
        owners.setdefault(id(owner.tensor), []).append(owner)
    inside = {id(module) for block in blocks for module in block.module.modules()}
    reasons: dict[int, str] = {}
    for group in owners.values():
        if any(id(owner.layer) not in inside for owner in group):
            _tie_(reasons, group, group)
    firsts = sorted((group[0] for group in owners.values()), key=lambda owner: owner.span)
    for before, after in itertools.pairwise(firsts):
        if before.span[0] == after.span[0] and after.span[1] < before.span[2]:
            pair = owners[id(before.tensor)], owners[id(after.tensor)]
            _tie_(reasons, *pair)
            _tie_(reasons, *reversed(pair))
    return reasons


@dataclass(frozen=True, eq=False)
class _Owner:
    """A layer that holds a tensor.

    Args:
        name: of the layer, or of the parameter where it is no weight.
        span: where the tensor is: device, first byte, end.
    """

    name: str
    layer: nn.Module
    tensor: Tensor
    span: tuple[str, int, int]


def _tie_(reasons: dict[int, str], layers: Sequence[_Owner], others: Sequence[_Owner]) -> None:
    """Give each of these layers the name of another one."""
    for owner in layers:
        other = next((other for other in others if other.layer is not owner.layer), None)
        if other is not None:
            reasons[id(owner.layer)] = (
                f"its weight is also that of {other.name}; give each its own copy to prune them"
            )


def _owners(denoiser: nn.Module) -> Iterator[_Owner]:
    """Every plain parameter of every layer."""
    for name, layer in denoiser.named_modules():
        for leaf, tensor in layer._parameters.items():
            if tensor is not None and type(tensor) is nn.Parameter and tensor.numel():
                path = name if leaf == "weight" else f"{name}.{leaf}"
                yield _Owner(path, layer, tensor, _span(tensor))


def _span(tensor: Tensor) -> tuple[str, int, int]:
    """Device, first byte, end; on the meta device a number of the tensor's own."""
    if tensor.is_meta:
        return "meta", id(tensor), id(tensor) + 1
    steps = zip(tensor.shape, tensor.stride())  # noqa: B905
    num_items = 1 + sum((size - 1) * step for size, step in steps)
    start = tensor.data_ptr()
    return str(tensor.device), start, start + num_items * tensor.element_size()


def refuse_unwritable(
    denoiser: nn.Module, names: Iterable[str], blocks: Sequence[str] = ()
) -> None:
    """Refuse layers of these names that have no values, or may not be written.

    Names of what is no Linear and no convolution are passed over; `blocks` are as for `discover`.

    Raises ModelError.
    """
    shared = tied(denoiser, find_blocks(denoiser, blocks))
    layers = dict(denoiser.named_modules())
    reasons = {}
    for name in names:
        layer = layers.get(name)
        if layer is None or not is_layer(layer):
            continue
        reason = obstacle(layer) or no_values(layer) or shared.get(id(inner_layer(layer)), "")
        if reason := reason or _read_only(layer):
            reasons[name] = reason
    _refuse(reasons)


def refuse_without_values(denoiser: nn.Module, names: Iterable[str]) -> None:
    """Raises ModelError if there are no values in layers of these names."""
    reasons = {name: no_values(denoiser.get_submodule(name)) for name in names}
    _refuse({name: reason for name, reason in reasons.items() if reason})


def _refuse(reasons: Mapping[str, str]) -> None:
    if reasons:
        first, reason = next(iter(reasons.items()))
        more = f" (and {len(reasons) - 1} more layers)" if len(reasons) > 1 else ""
        raise ModelError(f"{first}{more}: {reason}")


def _read_only(layer: nn.Module) -> str:
    """Why the weight cannot be changed in place here; empty if it can."""
    weight = inner_layer(layer)._parameters["weight"]
    is_read_only = weight is not None and weight.is_inference()
    return INFERENCE if is_read_only and not torch.is_inference_mode_enabled() else ""


def is_layer(layer: nn.Module) -> bool:
    """Whether it is a Linear or a pointwise convolution, however its weight is kept."""
    is_known = expected_shape(inner_layer(layer)) is not None or is_adapted(layer)
    return is_known or packed_size(layer) is not None


def packed_size(layer: nn.Module) -> tuple[int, int] | None:
    """(C_out, C_in) of a quantised layer without a weight; None for others.

    Torch's has no tensors of its own; others hold integers or 8-bit floats.
    """
    sizes = tuple(getattr(layer, a, getattr(layer, b, None)) for a, b in _SIZES)
    if not all(isinstance(size, int) for size in sizes):
        return None
    is_torchs = "quantized" in type(layer).__module__.split(".")
    return sizes if is_torchs or _holds_packed(layer) else None  # type: ignore[return-value]


def _holds_packed(layer: nn.Module) -> bool:
    if isinstance(layer, nn.Linear):
        return False
    tensors = [t for t in (*layer._parameters.values(), *layer._buffers.values()) if t is not None]
    packed = [t for t in tensors if t.ndim >= 2 and t.dtype not in (*_DTYPES, torch.bool)]
    return bool(packed) and "weight" not in layer._parameters


def _is_cast(layer: nn.Module) -> bool:
    """Whether diffusers' layerwise casting brings the weight into another dtype for each call."""
    hooks = getattr(getattr(layer, "_diffusers_hook", None), "hooks", {})
    return any("casting" in name for name in hooks)


@torch.no_grad()
def check_written(denoiser: nn.Module, name: str, written: Tensor, before: Tensor) -> None:
    """Read a layer's weight back from the parameter that the layer multiplies with.

    Args:
        written: what was to be written, [C_out, C_in].
        before: the weight before that; it is put back where the layer holds something else.

    Raises ModelError.
    """
    weight = inner_layer(denoiser.get_submodule(name))._parameters["weight"]
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
