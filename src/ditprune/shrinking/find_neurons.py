"""Which neurons does an MLP have, and what goes with each?

Rows of one or two layers, or two rows of one where half of them are gates, and a column of the
layer behind. Depthwise convolutions between them keep neurons apart.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence

from torch import nn

from ditprune.shrinking import names
from ditprune.shrinking.layers import (
    OwnLayer,
    chunked,
    layers_in,
    modulates,
    norm_sizes,
    numbers_like,
    own_layers,
)
from ditprune.shrinking.units import NEURONS, Consumer, UnitGroup, Whole
from ditprune.targets import exceptions

ROUTED = "a router sends it some of the rows only, too few to choose by"
ACROSS = "a norm runs across its neurons, so that the others change when one goes"


def find_neurons(
    block: nn.Module, path: str, taken: Collection[str]
) -> Iterator[UnitGroup | Whole]:
    """The MLPs of a block, the innermost first.

    Args:
        taken: paths of layers that belong to attentions.
    """
    taken = set(taken)
    modules = dict(block.named_modules(prefix=path))
    for name in sorted(modules, key=lambda name: -name.count(".")):
        module = modules[name]
        is_list = isinstance(module, (nn.ModuleList, nn.ModuleDict))
        if (is_list and name != path) or _embeds(modules, path, name):
            continue
        while True:
            layers = [
                x for x in own_layers(module, name)
                if x.path not in taken and not modulates(x, path)
            ]  # fmt: skip
            chain = _chain(layers, is_mixed=name == path)
            if not chain:
                break
            taken |= {x.path for x in chain}
            yield _group(modules, name, path, chain)


def _embeds(modules: Mapping[str, nn.Module], block: str, path: str) -> bool:
    """Whether a module embeds the timestep or the label, as DiT's blocks do."""
    inside = (p for p in modules if p != block and f"{path}.".startswith(f"{p}."))
    return any(exceptions.EMBEDDER_CLASS.search(type(modules[p]).__name__) for p in inside)


def _chain(layers: Sequence[OwnLayer], is_mixed: bool) -> list[OwnLayer]:
    """The layers of an MLP, the one behind last; none where there is no MLP.

    Args:
        is_mixed: these layers may belong together or not, so that only wider ones in between
            are taken for neurons.
    """
    best: list[OwnLayer] = []
    for number, last in reversed([*enumerate(layers)]):
        width = last.columns
        if not last.is_matrix or (is_mixed and width <= last.rows):
            continue
        others = [x for x in layers if x is not last and x.rows in (width, 2 * width)]
        ups = [x for x in others if x.is_matrix]
        between = [x for x in others if x.is_depthwise]
        if not ups or ups[0] not in layers[:number]:
            continue
        is_even = len({(x.rows, x.columns) for x in ups}) == 1
        is_pair = len(ups) == 1 or (len(ups) == 2 and ups[0].rows == width)
        if is_even and is_pair and all(x.rows == ups[0].rows for x in between):
            best = max(best, [*ups, *between, last], key=lambda x: x[-1].columns if x else 0)
    return best


def _group(
    modules: Mapping[str, nn.Module], path: str, block: str, chain: Sequence[OwnLayer]
) -> UnitGroup | Whole:
    *layers, last = chain
    name, width = _outermost(modules, path, block, chain), last.columns
    if names.is_routed(name):
        return Whole(name, NEURONS, block, ROUTED)
    if name != block and {width, 2 * width} & set(norm_sizes(modules[name])) - {last.rows}:
        return Whole(name, NEURONS, block, ACROSS)
    known = [(names.NEURONS, width, 1), (names.NEURONS, 2 * width, 2)]
    numbers = [
        number
        for p, module in modules.items()
        if f"{p}.".startswith(f"{name}.") and f"{path}.".startswith(f"{p}.")
        for number in numbers_like(module, p, known if width != last.rows else [])
    ]
    places = chunked(1, width, width, 1)
    rows = [part for x in layers for part in x.row_parts(chunked(x.rows // width, width, width, 1))]
    return UnitGroup(
        name, NEURONS, block, width, (Consumer(last.path, places),),
        (*rows, last.column_part(places)), tuple(numbers),
    )  # fmt: skip


def _outermost(
    modules: Mapping[str, nn.Module], path: str, block: str, chain: Sequence[OwnLayer]
) -> str:
    """The path of the outermost module below the block that holds the same layers."""
    held = {x.path for x in chain}
    while path != block:
        parent = path.rpartition(".")[0]
        module = modules.get(parent)
        if module is None or parent == block:
            break
        if {x.path for x in layers_in(module, parent)} != held:
            break
        path = parent
    return path
