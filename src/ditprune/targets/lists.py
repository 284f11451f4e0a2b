"""Which lists of a denoiser hold transformer blocks? Found by structure.

A block has at least two Linears and evidence of attention. A block list is a `ModuleList`,
`Sequential` or `ModuleDict` of blocks; between them may be modules without weights, and, outside
a `Sequential`, MLPs. Where no list is one, those of MLPs are.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from torch import nn

from ditprune.targets import exceptions
from ditprune.targets.wrapped import without_base

CONTAINERS = (nn.ModuleList, nn.Sequential, nn.ModuleDict)
# If the trunk holds less than this share of all listed weights, every list counts as trunk
# (U-Nets scatter their transformer blocks).
_TRUNK_SHARE = 0.6


@dataclass(frozen=True)
class BlockList:
    """A list whose items are blocks.

    Args:
        owner: the path of the module that holds it, containers left out.
        blocks: (path, module) of each.
    """

    path: str
    owner: str
    blocks: tuple[tuple[str, nn.Module], ...]

    @property
    def num_weights(self) -> int:
        linears = (linear for _, block in self.blocks for _, linear in _linears(block))
        return sum(linear.weight.numel() for linear in linears)


def find_lists(denoiser: nn.Module) -> tuple[list[BlockList], list[BlockList]]:
    """The lists of the trunk, and the others."""
    lists = list(_lists(denoiser, "", "", _blocks_in))
    if not lists:
        lists = list(_lists(denoiser, "", "", _mlps_in))
    trunk = trunk_of(denoiser, lists)
    paths = {listed.path for listed in lists}
    beside = [
        listed
        for listed in _lists(denoiser, "", "", _mlps_in)
        if listed.owner in {known.owner for known in trunk} and listed.path not in paths
    ]
    lists = [*lists, *(listed for listed in beside if not _overlap(listed, lists))]
    trunk = [*trunk, *(listed for listed in lists if listed in beside)]
    return trunk, [listed for listed in lists if listed not in trunk]


def join(path: str, name: str) -> str:
    """The path of a submodule; either part may be empty."""
    return f"{path}.{name}" if path and name else path or name


def trunk_of(denoiser: nn.Module, lists: Sequence[BlockList]) -> list[BlockList]:
    """The heaviest list and those of its owner; all lists where these hold too little.

    Lists of a text or image encoder count only where there are no others.
    """
    lists = [listed for listed in lists if not is_of_encoder(denoiser, listed)] or list(lists)
    if not lists:
        return []
    heaviest = max(lists, key=lambda listed: listed.num_weights)
    trunk = [listed for listed in lists if listed.owner == heaviest.owner]
    num_weights = sum(listed.num_weights for listed in lists)
    share = sum(listed.num_weights for listed in trunk) / max(1, num_weights)
    return trunk if share >= _TRUNK_SHARE else lists


def is_of_encoder(denoiser: nn.Module, listed: BlockList) -> bool:
    """Whether a list lies in a model that encodes the condition, by its name or its library."""
    path = ""
    for name in listed.path.split("."):
        path = join(path, name)
        library = type(denoiser.get_submodule(path)).__module__.split(".")[0]
        if exceptions.ENCODER.search(name) or library == "transformers":
            return True
    return False


def _overlap(listed: BlockList, others: Sequence[BlockList]) -> bool:
    """Whether a list holds another one, or lies in one."""
    paths = [(f"{listed.path}.", f"{other.path}.") for other in others]
    return any(a.startswith(b) or b.startswith(a) for a, b in paths)


def _linears(module: nn.Module) -> list[tuple[str, nn.Linear]]:
    linears = ((name, m) for name, m in module.named_modules() if isinstance(m, nn.Linear))
    return [(without_base(name), linear) for name, linear in linears]


def _lists(
    module: nn.Module, path: str, owner: str, blocks_in: Callable[[str, nn.Module], list[str]]
) -> Iterator[BlockList]:
    """Outermost containers with blocks, top down.

    Args:
        blocks_in: gives the names of the blocks in a container, none if it is no block list.
    """
    if isinstance(module, CONTAINERS):
        names = blocks_in(path, module)
        if names:
            blocks = tuple((join(path, name), module.get_submodule(name)) for name in names)
            yield BlockList(path, owner, blocks)
            return
    else:
        owner = path
    for name, child in module.named_children():
        yield from _lists(child, join(path, name), owner, blocks_in)


def _blocks_in(_path: str, container: nn.Module) -> list[str]:
    """The blocks of a list that holds some, and nothing but MLPs and weightless items beside."""
    items = {name: item for name, item in container.named_children() if _has_matrices(item)}
    blocks = [name for name, item in items.items() if _is_block(item)]
    if not blocks:
        return []
    are_mlps_blocks = not isinstance(container, nn.Sequential)
    is_list = all(n in blocks or (are_mlps_blocks and _is_mlp(item)) for n, item in items.items())
    return list(items) if is_list else []


def _mlps_in(path: str, container: nn.Module) -> list[str]:
    """The items of a list of MLPs."""
    items = {name: item for name, item in container.named_children() if _has_matrices(item)}
    words = [path.rpartition(".")[2], *(type(item).__name__ for item in items.values())]
    if not path or not items or any(map(exceptions.NO_BLOCKS.search, words)):
        return []
    return list(items) if all(_is_mlp(item) for item in items.values()) else []


def _has_matrices(module: nn.Module) -> bool:
    return any(parameter.ndim >= 2 for parameter in module.parameters())


def _is_mlp(module: nn.Module) -> bool:
    """Whether it has two Linears or more, and no convolution beside them."""
    return len(_linears(module)) >= 2 and all(p.ndim <= 2 for p in module.parameters())


def _is_block(module: nn.Module) -> bool:
    if isinstance(module, CONTAINERS) and not isinstance(module, nn.Sequential):
        return _is_group(module)
    name = type(module).__name__
    if exceptions.ATTENTION_CLASS.search(name) and not re.search(
        "block|layer", name, re.IGNORECASE
    ):
        return False
    return len(_linears(module)) >= 2 and _has_attention(module)


def _is_group(module: nn.Module) -> bool:
    """Whether a list or a mapping is the parts of one block, attention and MLP, not a list of
    blocks.
    """
    children = list(module.children())
    is_mixed = len({type(child) for child in children}) > 1
    is_list = all(_is_block(child) for child in children)
    return is_mixed and not is_list and _is_mlp(module) and _has_attention(module)


def _has_attention(block: nn.Module) -> bool:
    for child in block.modules():
        named = child is not block and exceptions.ATTENTION_CLASS.search(type(child).__name__)
        if named and any(True for _ in child.parameters()):
            return True
    for name, linear in _linears(block):
        leaf = name.rsplit(".", 1)[-1]
        if exceptions.ATTENTION_LINEAR.match(leaf) or exceptions.ATTENTION_CLASS.search(leaf):
            return True
        is_wide = linear.out_features >= exceptions.FUSED_RATIO * linear.in_features
        if is_wide and exceptions.FUSED_LINEAR.match(leaf):
            return True
    return False
