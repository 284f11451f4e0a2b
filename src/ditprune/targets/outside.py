"""Which large parts of a denoiser lie outside every block that was found?

Blocks of a form that structure does not tell would else stay dense without a word.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import nn

from ditprune.targets import exceptions
from ditprune.targets.blocks import Block
from ditprune.targets.lists import CONTAINERS, join
from ditprune.targets.matrix import kind_of

# Of all Linear weights. At their default sizes the classes of diffusers have at most 10 % of them
# in such parts, and at the smallest sizes 26 %; models with a missed list have half.
LARGE_SHARE = 1 / 3
_FEWEST = 2  # Linears, as in a block; one alone is a projection


def outside(denoiser: nn.Module, blocks: Sequence[Block]) -> dict[str, nn.Module]:
    """The outermost modules without a block, by path; none where they are a small share.

    Embedders, and modules with a single Linear, do not count.
    """
    parts = {
        path: module
        for path, module in _without_blocks(denoiser, "", {id(b.module) for b in blocks})
        if len(_weights(path, module)) >= _FEWEST
    }
    all_weights = _sizes([denoiser])
    sizes: dict[int, int] = {}
    for path, module in parts.items():
        sizes |= _weights(path, module)
    inside = _sizes([block.module for block in blocks])
    num_outside = sum(size for key, size in sizes.items() if key not in inside)
    return parts if num_outside >= LARGE_SHARE * sum(all_weights.values()) else {}


def reason(path: str, module: nn.Module) -> str:
    """Why such a part stays dense, for a person."""
    return (
        "outside every block list that was found; name all lists, this one with --blocks "
        f"'{_glob(path, module)}'"
    )


def warning(denoiser: nn.Module, blocks: Sequence[Block]) -> str:
    """What to tell of the parts outside; empty where they are a small share."""
    parts = outside(denoiser, blocks)
    if not parts:
        return ""
    sizes = _sizes(list(parts.values()))
    share = sum(sizes.values()) / sum(_sizes([denoiser]).values())
    globs = [f"{path}.*" if path else "*" for path in dict.fromkeys(b.list_path for b in blocks)]
    globs += [_glob(path, module) for path, module in parts.items()]
    return (
        f"{type(denoiser).__name__}: {share:.0%} of its Linear weights lie outside every block "
        f"that was found and stay dense ({', '.join(parts)}); to prune them too, say where all "
        f"blocks are, as in blocks={tuple(globs)} or --blocks {' --blocks '.join(map(repr, globs))}"
    )


def warning_of_heavier(denoiser: nn.Module, blocks: Sequence[Block]) -> str:
    """What to tell of lists heavier than the trunk that are left to it; empty if there are none.

    They are taken for another model's (a text encoder's), by their names.
    """
    sizes: dict[tuple[bool, str], int] = {}
    for block in blocks:
        key = block.auxiliary, block.list_path
        sizes[key] = sizes.get(key, 0) + sum(_sizes([block.module]).values())
    trunk = sum(size for (is_auxiliary, _), size in sizes.items() if not is_auxiliary)
    heavier = [
        path for (is_auxiliary, path), size in sizes.items() if is_auxiliary and size > trunk
    ]
    if not heavier:
        return ""
    globs = tuple(f"{path}.*" for path in heavier)
    return (
        f"{type(denoiser).__name__}: {', '.join(heavier)} hold more weights than the blocks that "
        "are pruned, and stay dense as another model's (an encoder's, by its name); if they are "
        f"the denoiser's own, say where all blocks are, as in blocks={globs} or --blocks "
        f"{' --blocks '.join(map(repr, globs))}"
    )


def _without_blocks(
    module: nn.Module, path: str, blocks: set[int]
) -> Iterator[tuple[str, nn.Module]]:
    """Outermost modules that are no block and hold none."""
    for name, child in module.named_children():
        if id(child) in blocks:
            continue
        if any(id(part) in blocks for part in child.modules()):
            yield from _without_blocks(child, join(path, name), blocks)
        else:
            yield join(path, name), child


def _weights(path: str, module: nn.Module) -> dict[int, int]:
    """The sizes of the weights of its Linears, embedders left out."""
    leaf = path.rpartition(".")[2]
    # Where a model is small its embedders may be most of it, and still they are no blocks.
    is_embedder = any(map(exceptions.EMBEDDER.search, (leaf, type(module).__name__)))
    if is_embedder and not any(map(_is_list, module.modules())):
        return {}
    if kind_of(module):
        return _sizes([module])
    weights: dict[int, int] = {}
    for name, child in module.named_children():
        weights |= _weights(name, child)
    return weights


def _sizes(modules: Sequence[nn.Module]) -> dict[int, int]:
    """The sizes of the weights of all Linears, and of layers that are pruned like them, once."""
    layers = (layer for module in modules for layer in module.modules() if kind_of(layer))
    weights = (layer.get_parameter("weight") for layer in layers)
    return {id(weight): weight.numel() for weight in weights}


def _is_list(module: nn.Module) -> bool:
    """Whether its items could be blocks."""
    items = list(module.children()) if isinstance(module, CONTAINERS) else []
    return any(len(_sizes([item])) >= _FEWEST for item in items)


def _glob(path: str, module: nn.Module) -> str:
    """Names its items where it is a list or is mostly one, else itself."""
    inner, where = module, path
    while not _is_list(inner):
        half = sum(_sizes([inner]).values()) / 2
        heavy = [(n, c) for n, c in inner.named_children() if sum(_sizes([c]).values()) > half]
        if not heavy:
            return path
        where, inner = join(where, heavy[0][0]), heavy[0][1]
    return f"{where}.*"
