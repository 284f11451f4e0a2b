"""Finds the transformer blocks of any denoiser by structure, and the Linears to prune in them.

A block list is a `ModuleList`, `Sequential` or `ModuleDict` all of whose children are blocks: at
least two Linears and evidence of attention. The lists that share an owner with the heaviest one
are the trunk; others (text refiners, perceivers) are auxiliary and stay dense.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from ditprune.errors import ModelError
from ditprune.targets import exceptions

_CONTAINERS = (nn.ModuleList, nn.Sequential, nn.ModuleDict)
# Where the trunk holds less than this share of all listed weights, every list is the trunk
# (U-Nets scatter their transformer blocks).
_TRUNK_SHARE = 0.6


@dataclass(frozen=True)
class Target:
    """A Linear to prune.

    Args:
        name: its path in the denoiser; its weight is `name + ".weight"`.
        shape: (C_out, C_in).
        role: modulation, attention, mlp or other.
        block: the path of the block it is in.
        depth: the block's place in its list, from 0.
    """

    name: str
    shape: tuple[int, int]
    role: str
    block: str
    depth: int

    @property
    def num_weights(self) -> int:
        return self.shape[0] * self.shape[1]


@dataclass(frozen=True)
class _BlockList:
    path: str
    owner: str
    blocks: tuple[tuple[str, nn.Module], ...]

    @property
    def num_weights(self) -> int:
        linears = (linear for _, block in self.blocks for _, linear in _linears(block))
        return sum(linear.weight.numel() for linear in linears)


def discover(denoiser: nn.Module) -> dict[str, Target]:
    """Every Linear inside the trunk's blocks, by name, in module order.

    Works on the meta device. Raises ModelError where no transformer block is found.
    """
    lists = _trunk(list(_block_lists(denoiser, "", "")))
    if not lists:
        raise ModelError(
            f"{type(denoiser).__name__}: no transformer blocks found; expected a ModuleList whose "
            "items hold attention and Linears; pass the denoiser, not the pipeline"
        )
    blocks = [
        (path, depth, block)
        for block_list in lists
        for depth, (path, block) in enumerate(block_list.blocks)
    ]
    blocks += _lone_blocks(denoiser, [block for _, _, block in blocks], {p for p, _, _ in blocks})
    targets: dict[str, Target] = {}
    seen: set[int] = set()
    for path, depth, block in blocks:
        for name, linear in _prunable(block):
            if id(linear.weight) in seen:
                continue
            seen.add(id(linear.weight))
            full = f"{path}.{name}" if path else name
            shape = (linear.out_features, linear.in_features)
            targets[full] = Target(full, shape, role_of(name), path, depth)
    order = {name: i for i, (name, _) in enumerate(denoiser.named_modules())}
    return dict(sorted(targets.items(), key=lambda item: order[item[0]]))


def role_of(name: str) -> str:
    """What a layer does, by its path below its block."""
    for role, pattern in exceptions.ROLES:
        if pattern.search(name.lower()):
            return role
    return "other"


def _linears(module: nn.Module) -> list[tuple[str, nn.Linear]]:
    return [(name, m) for name, m in module.named_modules() if isinstance(m, nn.Linear)]


def _block_lists(module: nn.Module, path: str, owner: str) -> Iterator[_BlockList]:
    """Outermost qualifying containers, top down."""
    if isinstance(module, _CONTAINERS):
        children = list(module.named_children())
        if children and all(_is_block(child) for _, child in children):
            yield _BlockList(
                path, owner, tuple((f"{path}.{n}" if path else n, c) for n, c in children)
            )
            return
    else:
        owner = path
    for name, child in module.named_children():
        yield from _block_lists(child, f"{path}.{name}" if path else name, owner)


def _is_block(module: nn.Module) -> bool:
    if isinstance(module, _CONTAINERS) and not isinstance(module, nn.Sequential):
        return False
    name = type(module).__name__
    if exceptions.ATTENTION_CLASS.search(name) and not re.search(
        "block|layer", name, re.IGNORECASE
    ):
        return False
    return len(_linears(module)) >= 2 and _has_attention(module)


def _has_attention(block: nn.Module) -> bool:
    for child in block.modules():
        named = child is not block and exceptions.ATTENTION_CLASS.search(type(child).__name__)
        if named and any(True for _ in child.parameters()):
            return True
    for name, linear in _linears(block):
        leaf = name.rsplit(".", 1)[-1]
        if exceptions.ATTENTION_LINEAR.match(leaf):
            return True
        is_wide = linear.out_features >= exceptions.FUSED_RATIO * linear.in_features
        if is_wide and exceptions.FUSED_LINEAR.match(leaf):
            return True
    return False


def _trunk(lists: list[_BlockList]) -> list[_BlockList]:
    if not lists:
        return []
    heaviest = max(lists, key=lambda one: one.num_weights)
    trunk = [one for one in lists if one.owner == heaviest.owner]
    share = sum(one.num_weights for one in trunk) / max(1, sum(one.num_weights for one in lists))
    return trunk if share >= _TRUNK_SHARE else lists


def _lone_blocks(
    denoiser: nn.Module, blocks: list[nn.Module], listed: set[str]
) -> list[tuple[str, int, nn.Module]]:
    """Blocks of a listed class that stand outside any list (U-ViT's `mid_block`)."""
    classes = {type(block) for block in blocks}
    inside = {id(m) for block in blocks for m in block.modules()}
    return [
        (name, 0, module)
        for name, module in denoiser.named_modules()
        if type(module) in classes
        and id(module) not in inside
        and name not in listed
        and name
        and not any(path.startswith(f"{name}.") for path in listed)
    ]


def _prunable(block: nn.Module) -> Iterator[tuple[str, nn.Linear]]:
    embedders = [
        name
        for name, module in block.named_modules()
        if name and exceptions.EMBEDDER_CLASS.search(type(module).__name__)
    ]
    for name, linear in _linears(block):
        is_embedder = any(name.startswith(f"{embedder}.") for embedder in embedders)
        if linear.weight.numel() and not is_embedder and not _is_per_head(name, linear):
            yield name, linear


def _is_per_head(name: str, linear: nn.Linear) -> bool:
    num_out, num_in = linear.out_features, linear.in_features
    few = num_out <= exceptions.FEW_OUTPUTS and num_out * exceptions.FEW_OUTPUTS_RATIO <= num_in
    leaf = name.rsplit(".", 1)[-1]
    if exceptions.ATTENTION_LINEAR.match(leaf):  # keys and values of few heads are narrow too
        return False
    gate = (
        exceptions.GATE_LINEAR.match(leaf) is not None and num_out * exceptions.GATE_RATIO <= num_in
    )
    return few or gate
