"""Which heads does an attention have? With the neurons that share its output projection.

A unit is one head of keys and values with all the heads of queries that read it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import nn

from ditprune.shrinking import names
from ditprune.shrinking.attention import Attention, NoUnitsError, Sizes, sizes_of, width_of_queries
from ditprune.shrinking.head_parts import STRANGE, head_numbers, heads_group, producers, raw_parts
from ditprune.shrinking.layers import (
    OwnLayer,
    chunked,
    modulates,
    numbers_like,
    numbers_of,
    own_layers,
)
from ditprune.shrinking.units import HEADS, NEURONS, Consumer, Number, UnitGroup, UnitPart, Whole
from ditprune.targets.lists import CONTAINERS

MULTIHEAD = "nn.MultiheadAttention refuses heads that are together narrower than its input"
NO_OUTPUT = "no projection of what its heads give, so that nothing makes up for a head"


def find_heads(attention: Attention) -> list[UnitGroup | Whole]:
    """The groups of an attention: its heads, and the neurons that share its output projection."""
    try:
        return _find(attention)
    except NoUnitsError as error:
        return [Whole(attention.path, HEADS, attention.block, str(error))]


def _find(attention: Attention) -> list[UnitGroup | Whole]:
    if attention.parallel is not None:
        return _parallel(attention, attention.parallel)
    outputs = attention.outputs
    beside = None if outputs else _behind(attention)
    inner = outputs[0].columns if outputs else width_of_queries(attention)
    if beside is None and not outputs:
        raise NoUnitsError(NO_OUTPUT)
    sizes = sizes_of(attention, inner)
    parts, numbers = producers(attention, sizes), head_numbers(attention, sizes)
    if beside is not None:
        return _single_stream(attention, sizes, parts, numbers, beside)
    read = [x for x in outputs if x.columns == inner]
    return [heads_group(attention.path, attention, sizes, parts, numbers, read)]


# --- Attention and MLP with one output projection ---


@dataclass(frozen=True, eq=False)
class _Beside:
    """An MLP that shares a projection with an attention.

    Args:
        width: its number of neurons.
        ups: its first layers, none where they are rows of the attention's own projection.
    """

    path: str
    module: nn.Module
    output: OwnLayer
    width: int
    ups: tuple[OwnLayer, ...] = field(default=())


def _behind(attention: Attention) -> _Beside | None:
    """The projection behind an attention without an output of its own, and the MLP beside it."""
    if attention.is_block or len(attention.parents) < 2:
        return None
    parents = [(p, m) for p, m in attention.parents[1:] if not isinstance(m, CONTAINERS)]
    path, module = parents[0]
    layers = [x for x in own_layers(module, path) if not modulates(x, attention.block)]
    inner = width_of_queries(attention)
    for output in layers:
        width = output.columns - inner
        ups = tuple(x for x in layers if x is not output and x.rows in (width, 2 * width))
        if width > 0 and 1 <= len(ups) <= 2:
            return _Beside(path, module, output, width, ups)
        if width == 0 and names.is_output(output.path):
            return _Beside(path, module, output, 0)
    return None


def _single_stream(
    attention: Attention, sizes: Sizes, parts: Sequence[UnitPart], numbers: Sequence[Number],
    beside: _Beside,
) -> list[UnitGroup | Whole]:  # fmt: skip
    heads = heads_group(attention.path, attention, sizes, parts, numbers, [beside.output])
    if not beside.width:
        return [heads]
    rows = [
        part
        for up in beside.ups
        for part in up.row_parts(chunked(up.rows // beside.width, beside.width, beside.width, 1))
    ]
    return [heads, _neurons(beside.path, attention, beside, rows, sizes.inner)]


def _neurons(
    name: str, attention: Attention, beside: _Beside, rows: Sequence[UnitPart], offset: int
) -> UnitGroup:
    places = chunked(1, beside.width, beside.width, 1, offset)
    known = [(names.NEURONS, beside.width, 1), (names.NEURONS, 2 * beside.width, 2)]
    return UnitGroup(
        name, NEURONS, attention.block, beside.width,
        (Consumer(beside.output.path, places),), (*rows, beside.output.column_part(places)),
        tuple(numbers_like(beside.module, beside.path, known)),
    )  # fmt: skip


def _parallel(attention: Attention, layer: OwnLayer) -> list[UnitGroup | Whole]:
    """One projection for queries, keys, values and an MLP, and one behind them."""
    output = next(iter(attention.outputs), None)
    if output is None:
        raise NoUnitsError(NO_OUTPUT)
    inner, width, num_chunks = _split(attention, layer, output)
    sizes = sizes_of(attention, inner)
    if sizes.units != sizes.heads:
        raise NoUnitsError(STRANGE.format(names.leaf_of(layer.path), layer.rows, sizes.width))
    rows = layer.row_parts(sizes.queries(3 * inner))
    heads = heads_group(
        attention.path, attention, sizes, [*rows, *raw_parts(attention, sizes)],
        head_numbers(attention, sizes), [output],
    )  # fmt: skip
    beside = _Beside(attention.path, attention.module, output, width)
    ups = layer.row_parts(chunked(num_chunks, width, width, 1, offset=3 * inner))
    return [heads, _neurons(attention.path, attention, beside, ups, inner)]


def _split(attention: Attention, layer: OwnLayer, output: OwnLayer) -> tuple[int, int, int]:
    """(width of the heads, number of neurons, 2 where half of them are gates)."""
    numbers = dict(numbers_of(attention.module))
    said = [value for name, value in numbers.items() if names.INNER.match(name)]
    for inner in (*said, output.rows):
        width, rest = output.columns - inner, layer.rows - 3 * inner
        if width > 0 and rest in (width, 2 * width):
            return inner, width, rest // width
    raise NoUnitsError(
        f"the {layer.rows} rows of its {names.leaf_of(layer.path)} are not those of its heads and "
        f"of the {output.columns} columns behind them"
    )
