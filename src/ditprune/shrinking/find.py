"""Which heads and neurons does any denoiser have? Found by structure, on the meta device too.

Attentions have projections of queries, keys and values (`find_heads.py`); MLPs widen and narrow
(`find_neurons.py`). What is found is proposed: `checks.py` tries it on a call.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from torch import nn

from ditprune.errors import ModelError
from ditprune.shrinking.attention import Attention, attentions_in
from ditprune.shrinking.find_heads import MULTIHEAD, find_heads
from ditprune.shrinking.find_neurons import find_neurons
from ditprune.shrinking.layers import layers_in
from ditprune.shrinking.units import HEADS, NEURONS, UnitGroup, Whole
from ditprune.targets import exceptions
from ditprune.targets.matrix import expected_shape
from ditprune.targets.refused import refuse_fused, refuse_sparse
from ditprune.targets.wrapped import is_adapted
from ditprune.targets.writable import obstacle

NOTHING = "no attention and no MLP is recognised in it"


def find_groups(
    denoiser: nn.Module, blocks: Sequence[str]
) -> tuple[dict[str, UnitGroup], list[Whole]]:
    """The units of these blocks by the name of their group, and what has units that all stay.

    Raises ModelError for fused, sparse or adapted layers, which have to become plain first.
    """
    refuse_sparse(denoiser)
    for path in blocks:
        refuse_fused(denoiser.get_submodule(path), path)
        _refuse_adapted(denoiser.get_submodule(path), path)
    holders = _holders(denoiser)
    groups: dict[str, UnitGroup] = {}
    whole: list[Whole] = []
    for path in blocks:
        for item in _renamed(_in_block(denoiser, path)):
            reason = _obstacle(denoiser, item, holders) if isinstance(item, UnitGroup) else ""
            if reason:
                whole.append(Whole(item.name, item.kind, item.block, reason))
            elif isinstance(item, UnitGroup):
                groups[item.name] = item
            else:
                whole.append(item)
    return groups, whole


def _renamed(items: Sequence[UnitGroup | Whole]) -> Iterator[UnitGroup | Whole]:
    """The items of a block, each with a name of its own: those of one module add their kind."""
    shared = Counter(item.name for item in items)
    used: Counter[str] = Counter()
    for item in items:
        name = item.name if shared[item.name] == 1 else f"{item.name}.{item.kind}"
        used[name] += 1
        yield replace(item, name=name if used[name] == 1 else f"{name}.{used[name]}")


def _in_block(denoiser: nn.Module, path: str) -> list[UnitGroup | Whole]:
    block = denoiser.get_submodule(path)
    names = path.split(".")
    above = [".".join(names[:depth]) for depth in reversed(range(len(names)))]
    parents = [(name, denoiser.get_submodule(name)) for name in above]
    items: list[UnitGroup | Whole] = []
    taken: set[str] = set()
    for attention in attentions_in(block, path, parents):
        made = find_heads(attention)
        items += made
        taken |= _layers_of(attention, made)
    for name, module in block.named_modules(prefix=path):
        if isinstance(module, nn.MultiheadAttention):
            items.append(Whole(name, HEADS, path, MULTIHEAD))
            taken |= {layer.path for layer in layers_in(module, name)}
    items += find_neurons(block, path, taken)
    return items or [Whole(path, NEURONS, path, _nothing(block, path))]


def _nothing(block: nn.Module, path: str) -> str:
    """Why a block has no units: the reason of a layer, where there is one."""
    obstacles = (layer.obstacle for layer in layers_in(block, path))
    return next(filter(None, obstacles), NOTHING)


def _layers_of(attention: Attention, made: Sequence[UnitGroup | Whole]) -> set[str]:
    """The layers that are an attention's, so that no MLP has them."""
    groups = [item for item in made if isinstance(item, UnitGroup)]
    used = {part.tensor.rpartition(".")[0] for group in groups for part in group.parts}
    layers = {x.path for x in attention.layers if not attention.is_block or x.holds}
    return used | layers


def _holders(denoiser: nn.Module) -> dict[int, list[str]]:
    """The names of each parameter, by its id."""
    holders: dict[int, list[str]] = {}
    for name, parameter in denoiser.named_parameters(remove_duplicate=False):
        holders.setdefault(id(parameter), []).append(name)
    return holders


def _obstacle(denoiser: nn.Module, group: UnitGroup, holders: Mapping[int, Sequence[str]]) -> str:
    """Why tensors of a group cannot become smaller; empty if they can."""
    for part in group.parts:
        path, _, leaf = part.tensor.rpartition(".")
        layer = denoiser.get_submodule(path)
        reason = obstacle(layer) if leaf == "weight" and expected_shape(layer) else ""
        if reason:
            return f"{path}: {reason}"
        others = holders.get(id(getattr(layer, leaf)), [part.tensor])
        if len(others) > 1:
            other = next(name for name in others if name != part.tensor)
            return f"{part.tensor} is also {other}; give each its own copy to shrink them"
    if group.num_units < 2:
        return "it has one unit"
    return ""


def _refuse_adapted(block: nn.Module, path: str) -> None:
    """Raises ModelError where an adapter lies on a layer, or in an attention."""
    for name, module in block.named_modules(prefix=path):
        if is_adapted(module):
            raise ModelError(
                f"{name}: an adapter (LoRA) lies on it; merge it and remove it first "
                "(pipe.fuse_lora(), then pipe.unload_lora_weights()), or shrink without it and "
                "cut the LoRA to fit afterwards"
            )
        is_processor = exceptions.ADAPTER_CLASS.search(type(module).__name__)
        if is_processor and any(True for _ in module.parameters()):
            raise ModelError(
                f"{name}: {type(module).__name__} is part of an adapter (IP-Adapter), which reads "
                "heads that would go; call pipe.unload_ip_adapter() first"
            )
