"""Which layers in a block are targets, and why does the rest stay dense?"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList

from ditprune.targets import exceptions, outside
from ditprune.targets.blocks import Block, find_blocks
from ditprune.targets.lists import join
from ditprune.targets.matrix import CONVOLUTIONS, expected_shape, kind_of, matrix_shape
from ditprune.targets.refused import left_behind
from ditprune.targets.wrapped import adapter_parts, inner_layer, is_adapted, is_lora, without_base
from ditprune.targets.writable import (
    ADAPTED,
    PARAMETRISED,
    QUANTISED,
    is_layer,
    obstacle,
    packed_size,
    tied,
)

# Why a layer stays dense.
EMBEDDER = "embeds the timestep or the label; original models keep it outside the blocks"
MULTIHEAD = (
    "nn.MultiheadAttention keeps query, key and value in a raw parameter and never calls its "
    "output Linear"
)
LEFT_BEHIND = "a fused copy that unfusing left behind; nothing calls it"
PER_HEAD = "one output for each head or expert: too few rows to compare"
AUXILIARY = (
    "blocks outside the trunk (text encoders and refiners, perceivers), dense unless asked for"
)
NOT_CHOSEN = "prunable, and not among the chosen targets"
MIXES = "a convolution that mixes positions or keeps channels apart, not one matrix"
ADAPTER = "part of an adapter (LoRA, IP-Adapter), which stays as it is"

_Part = tuple[str, str, list[Tensor]]  # path, reason to stay dense, matrices
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


@dataclass(frozen=True)
class Target:
    """A layer to prune: a Linear, or a pointwise convolution.

    Args:
        name: its path in the denoiser; its weight is `name + ".weight"`.
        shape: (C_out, C_in), whatever the weight's own shape; `matrix.as_matrix` is the view.
        role: modulation, attention, mlp or other.
        block: the path of the block it is in.
        depth: the block's position in its list, from 0.
        kind: `linear` or `convolution`.
        auxiliary: whether its block is outside the trunk (text refiner, perceiver).
    """

    name: str
    shape: tuple[int, int]
    role: str
    block: str
    depth: int
    kind: str = field(default="linear", kw_only=True)
    auxiliary: bool = field(default=False, kw_only=True)

    @property
    def num_weights(self) -> int:
        return self.shape[0] * self.shape[1]


@dataclass(frozen=True)
class LeftOut:
    """Matrices inside the blocks that are no targets, or large parts outside every block.

    Args:
        name: the path of a layer, of a whole submodule or block list, or of a raw parameter.
        num_weights: weights in its matrices; biases and norms do not count.
        reason: why it stays dense, for a person.
    """

    name: str
    num_weights: int
    reason: str


def prunable(
    block: nn.Module, shared: Collection[int] = ()
) -> Iterator[tuple[str, nn.Module, str]]:
    """(path in the block, layer, kind) of every layer to prune.

    Args:
        shared: ids of layers that share their weight with another.
    """
    dense = _dense_parts(block)
    inner = {id(inner_layer(layer)) for layer in block.modules() if is_lora(layer)}
    for name, layer in block.named_modules():
        kind = kind_of(layer)
        if kind is None or _is_within(name, dense) or _is_per_head(name, layer):
            continue
        if id(layer) in inner or id(inner_layer(layer)) in shared or obstacle(layer):
            continue
        if layer.get_parameter("weight").numel():
            yield name, layer, kind


def blocked(blocks: Sequence[Block], shared: Mapping[int, str]) -> dict[str, str]:
    """Why the weights of layers in these blocks may not be written, by path.

    Args:
        shared: as `writable.tied` gives it.
    """
    reasons = {}
    for block in blocks:
        for name, layer in block.module.named_modules():
            if not is_layer(layer):
                continue
            if reason := obstacle(layer) or shared.get(id(layer), ""):
                reasons[join(block.path, name)] = reason
    return reasons


def left_out(
    denoiser: nn.Module, targets: Mapping[str, Target], blocks: Sequence[str] = ()
) -> dict[str, LeftOut]:
    """Every parameter with two axes or more inside a block list that is not a target's weight.

    Where no globs say which modules are the `blocks`, and a large share of all Linear weights lies
    outside those that were found, the parts that hold it are there too, with a reason that
    `outside.reason` gives. Works on the meta device. A parameter that layers share counts once.
    """
    counted = {id(denoiser.get_parameter(f"{name}.weight")) for name in targets}
    found_blocks = find_blocks(denoiser, blocks)
    pruned_blocks = {target.block for target in targets.values()}
    pruned_lists = {block.list_path for block in found_blocks if block.path in pruned_blocks}
    parts: list[_Part] = []
    shared = tied(denoiser, found_blocks)
    for block in found_blocks:
        if block.auxiliary and block.list_path not in pruned_lists:
            parts.append((block.list_path, AUXILIARY, _matrices(block.module)))
        else:
            parts += _parts(block, shared)
    if not blocks:
        for path, module in outside.outside(denoiser, found_blocks).items():
            parts.append((path, outside.reason(path, module), _matrices(module)))
    dense: dict[str, LeftOut] = {}
    for name, reason, matrices in parts:
        sizes = {id(matrix): matrix.numel() for matrix in matrices if id(matrix) not in counted}
        counted |= sizes.keys()
        num_weights = sum(sizes.values())
        if num_weights:
            before = dense[name].num_weights if name in dense else 0
            dense[name] = LeftOut(name, before + num_weights, reason)
    return dense


def warn_of_outside(denoiser: nn.Module, blocks: Sequence[str] = ()) -> None:
    """Warn where a large share of the Linear weights lies outside the blocks that were found."""
    if blocks:
        return
    listed = find_blocks(denoiser)
    for text in (outside.warning(denoiser, listed), outside.warning_of_heavier(denoiser, listed)):
        if text:
            warnings.warn(text, stacklevel=3)


def _parts(block: Block, shared: Mapping[int, str]) -> Iterator[_Part]:
    """(path, reason to stay dense, matrices) of all that a block holds, targets included."""
    dense = _dense_parts(block.module)
    for name, reason in dense.items():
        yield join(block.path, name), reason, _matrices(block.module.get_submodule(name))
    for name, module in block.module.named_modules():
        if _is_within(name, dense):
            continue
        path = join(block.path, without_base(name))
        if size := packed_size(module):
            yield path, QUANTISED, [torch.empty(size, device="meta")]
            continue
        for leaf, matrix in module.named_parameters(recurse=False):
            if matrix.ndim >= 2:
                yield *_path_and_reason(path, module, leaf, shared), [matrix]


def _path_and_reason(
    path: str, layer: nn.Module, leaf: str, shared: Mapping[int, str]
) -> tuple[str, str]:
    if isinstance(layer, ParametrizationList):
        return path.removesuffix(".parametrizations.weight"), PARAMETRISED
    is_convolution = isinstance(layer, (*CONVOLUTIONS, *_TRANSPOSED))
    if expected_shape(layer) and leaf.startswith("weight") and not _is_grouped(layer):
        if reason := obstacle(layer) or shared.get(id(layer), ""):
            return path, reason
        return path, PER_HEAD if _is_per_head(path, layer) else NOT_CHOSEN
    if is_convolution:
        return path, MIXES
    return join(path, leaf), f"a raw parameter of {type(layer).__name__}, not of a Linear"


def _is_grouped(layer: nn.Module) -> bool:
    return isinstance(layer, CONVOLUTIONS) and layer.groups > 1


def _dense_parts(block: nn.Module) -> dict[str, str]:
    """Submodules that stay dense as a whole, by path in the block, each with its reason."""
    parts: dict[str, str] = {}
    copies = left_behind(block)
    for name, module in block.named_modules():
        if not name or _is_within(name, parts):
            continue
        if isinstance(module, nn.MultiheadAttention):
            parts[name] = MULTIHEAD
        elif is_adapted(module) and not is_lora(module):
            parts[name] = ADAPTED
        elif exceptions.ADAPTER_CLASS.search(type(module).__name__):
            parts[name] = ADAPTER
        elif is_lora(module):
            parts |= {f"{name}.{part}": ADAPTER for part in adapter_parts(module)}
        elif name in copies:
            parts[name] = LEFT_BEHIND
        elif not kind_of(module) and exceptions.EMBEDDER_CLASS.search(type(module).__name__):
            parts[name] = EMBEDDER
    return parts


def _is_within(name: str, parts: Mapping[str, str]) -> bool:
    """Whether a path is one of these parts or below one."""
    return any(name == part or name.startswith(f"{part}.") for part in parts)


def _is_per_head(name: str, layer: nn.Module) -> bool:
    """Whether a matrix has one output for each head or expert, by its shape and leaf name."""
    num_out, num_in = matrix_shape(layer.get_parameter("weight").shape)
    few = num_out <= exceptions.FEW_OUTPUTS and num_out * exceptions.FEW_OUTPUTS_RATIO <= num_in
    leaf = name.rsplit(".", 1)[-1]
    if exceptions.ATTENTION_LINEAR.match(leaf):  # keys and values of few heads are narrow too
        return False
    is_gate = exceptions.GATE_LINEAR.match(leaf) is not None
    return few or (is_gate and num_out * exceptions.GATE_RATIO <= num_in)


def _matrices(module: nn.Module) -> list[Tensor]:
    return [matrix for matrix in module.parameters() if matrix.ndim >= 2]
