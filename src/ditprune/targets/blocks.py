"""Where are the transformer blocks of a denoiser? Found by structure, or where globs say.

Block lists are found by `lists.py`. Those that share an owner with the heaviest list are the
trunk; other lists (text refiners, perceivers) are auxiliary.

Globs over module paths take the place of all that: a block is the outermost module that matches.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import nn

from ditprune.errors import TargetError, did_you_mean
from ditprune.targets.lists import CONTAINERS, BlockList, find_lists

# The globs of every denoiser, or those of each by its name.
Globs = Sequence[str] | Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class Block:
    """A transformer block.

    Args:
        path: its path in the denoiser.
        list_path: the path of its list; the block's own path if it is outside any list; the
            path of its parent if a glob named it.
        depth: its position in the list, or among those of its parent that globs named, from 0.
        auxiliary: whether its list is outside the trunk.
        module: the block itself.
    """

    path: str
    list_path: str
    depth: int
    auxiliary: bool
    module: nn.Module


def find_blocks(denoiser: nn.Module, globs: Sequence[str] = ()) -> list[Block]:
    """Every block: the trunk's, then those of its classes outside any list, then auxiliary ones.

    Globs over module paths say instead which modules are the blocks; none of these is auxiliary.

    Raises TargetError for a glob that matches no module.
    """
    if globs:
        return _named_blocks(denoiser, globs)
    trunk, others = find_lists(denoiser)
    core = [block for listed in trunk for block in _blocks_of(listed, auxiliary=False)]
    auxiliary = [block for listed in others for block in _blocks_of(listed, auxiliary=True)]
    return core + _lone_blocks(denoiser, core, auxiliary) + auxiliary


def check_named(globs: Globs, denoisers: Collection[str]) -> None:
    """Refuse globs of a denoiser that is not there. Raises TargetError."""
    for name in globs if isinstance(globs, Mapping) else ():
        if name not in denoisers:
            raise TargetError(
                f"--blocks {name}=…: no such denoiser; expected {', '.join(denoisers)}"
            )


def globs_of(globs: Globs, denoiser: str) -> tuple[str, ...]:
    """The globs of one denoiser of several.

    Raises TargetError where they are given by name, and not for this one.
    """
    if isinstance(globs, Mapping):
        if denoiser not in globs:
            raise TargetError(
                f"--blocks: none for the denoiser '{denoiser}', only for {', '.join(globs)}; "
                f"add {denoiser}=GLOB"
            )
        globs = globs[denoiser]
    if isinstance(globs, str):
        return (globs,)
    return tuple(globs)


def _blocks_of(block_list: BlockList, auxiliary: bool) -> list[Block]:
    return [
        Block(path, block_list.path, depth, auxiliary, module)
        for depth, (path, module) in enumerate(block_list.blocks)
    ]


def _named_blocks(denoiser: nn.Module, globs: Sequence[str]) -> list[Block]:
    """The outermost modules that match a glob, in module order."""
    paths = [path for path, _ in denoiser.named_modules() if path]
    for glob in globs:
        if not any(fnmatchcase(path, glob) for path in paths):
            raise TargetError(
                f"--blocks '{glob}' matches none of {len(paths)} modules of "
                f"{type(denoiser).__name__}; {_near(denoiser, glob)}"
            )
    blocks: list[Block] = []
    num_before: Counter[str] = Counter()
    for path in paths:
        is_inside = bool(blocks) and path.startswith(f"{blocks[-1].path}.")
        if is_inside or not any(fnmatchcase(path, glob) for glob in globs):
            continue
        parent = path.rpartition(".")[0]
        block = Block(path, parent, num_before[parent], False, denoiser.get_submodule(path))
        num_before[parent] += 1
        blocks.append(block)
    return blocks


def _near(denoiser: nn.Module, glob: str) -> str:
    """A clause that proposes globs: the items of each list, else the paths of modules."""
    lists = {
        f"{path}.*"
        for path, module in denoiser.named_modules()
        if path and isinstance(module, CONTAINERS) and any(True for _ in module.parameters())
    }
    return did_you_mean(glob, lists or {path for path, _ in denoiser.named_modules() if path})


def _lone_blocks(denoiser: nn.Module, core: list[Block], auxiliary: list[Block]) -> list[Block]:
    """Blocks outside any list whose class is in the trunk (U-ViT's `mid_block`)."""
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
