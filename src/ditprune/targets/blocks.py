"""Finds the transformer blocks of any denoiser by structure.

A block list is a `ModuleList`, `Sequential` or `ModuleDict` all of whose children are blocks: at
least two Linears and evidence of attention. The lists that share an owner with the heaviest one
are the trunk; others (text refiners, perceivers) are auxiliary.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from ditprune.targets import exceptions

_CONTAINERS = (nn.ModuleList, nn.Sequential, nn.ModuleDict)
# Where the trunk holds less than this share of all listed weights, every list is the trunk
# (U-Nets scatter their transformer blocks).
_TRUNK_SHARE = 0.6


@dataclass(frozen=True)
class Block:
    """A transformer block.

    Args:
        path: its path in the denoiser.
        list_path: that of the list it is in; its own where it stands outside any list.
        depth: its place in the list, from 0.
        auxiliary: in a list outside the trunk.
        module: the block itself.
    """

    path: str
    list_path: str
    depth: int
    auxiliary: bool
    module: nn.Module


@dataclass(frozen=True)
class _BlockList:
    path: str
    owner: str
    blocks: tuple[tuple[str, nn.Module], ...]

    @property
    def num_weights(self) -> int:
        linears = (linear for _, block in self.blocks for _, linear in _linears(block))
        return sum(linear.weight.numel() for linear in linears)


def find_blocks(denoiser: nn.Module) -> list[Block]:
    """Every block: those of the trunk, those of its classes outside any list, auxiliary ones."""
    lists = list(_block_lists(denoiser, "", ""))
    trunk = _trunk(lists)
    core = [block for one in trunk for block in _blocks_of(one, auxiliary=False)]
    others = [one for one in lists if one not in trunk]
    auxiliary = [block for one in others for block in _blocks_of(one, auxiliary=True)]
    return core + _lone_blocks(denoiser, core, auxiliary) + auxiliary


def join(path: str, name: str) -> str:
    """The path of a submodule; either part may be empty."""
    return f"{path}.{name}" if path and name else path or name


def _blocks_of(block_list: _BlockList, auxiliary: bool) -> list[Block]:
    return [
        Block(path, block_list.path, depth, auxiliary, module)
        for depth, (path, module) in enumerate(block_list.blocks)
    ]


def _linears(module: nn.Module) -> list[tuple[str, nn.Linear]]:
    return [(name, m) for name, m in module.named_modules() if isinstance(m, nn.Linear)]


def _block_lists(module: nn.Module, path: str, owner: str) -> Iterator[_BlockList]:
    """Outermost qualifying containers, top down."""
    if isinstance(module, _CONTAINERS):
        children = list(module.named_children())
        if children and all(_is_block(child) for _, child in children):
            yield _BlockList(path, owner, tuple((join(path, n), c) for n, c in children))
            return
    else:
        owner = path
    for name, child in module.named_children():
        yield from _block_lists(child, join(path, name), owner)


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


def _lone_blocks(denoiser: nn.Module, core: list[Block], auxiliary: list[Block]) -> list[Block]:
    """Blocks of a class of the trunk that stand outside any list (U-ViT's `mid_block`)."""
    classes = {type(block.module) for block in core}
    listed = [*core, *auxiliary]
    inside = {id(module) for block in listed for module in block.module.modules()}
    return [
        Block(name, name, 0, False, module)
        for name, module in denoiser.named_modules()
        if type(module) in classes
        and id(module) not in inside
        and name
        and not any(block.path.startswith(f"{name}.") for block in listed)
    ]
