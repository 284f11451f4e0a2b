"""What goes with each head of an attention? Rows, columns and numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ditprune.shrinking import names
from ditprune.shrinking.attention import Attention, NoUnitsError, Sizes
from ditprune.shrinking.layers import OwnLayer, chunked, modulates, norms_in, numbers_like
from ditprune.shrinking.units import HEADS, Consumer, Number, UnitGroup, UnitPart
from ditprune.targets.lists import join

STRANGE = "its {} has {} rows, which are no number of heads of {}"


def heads_group(
    name: str, attention: Attention, sizes: Sizes, parts: Sequence[UnitPart],
    numbers: Sequence[Number], read: Sequence[OwnLayer],
) -> UnitGroup:  # fmt: skip
    places = sizes.queries()
    return UnitGroup(
        name, HEADS, attention.block, sizes.units,
        tuple(Consumer(x.path, places) for x in read),
        (*parts, *(x.column_part(places) for x in read)), tuple(numbers),
    )  # fmt: skip


def producers(attention: Attention, sizes: Sizes) -> list[UnitPart]:
    """Rows of all that has a place for each head."""
    outputs = {id(x.module) for x in attention.outputs}
    parts: list[UnitPart] = []
    for layer in attention.layers:
        if id(layer.module) in outputs or modulates(layer, attention.block):
            continue
        held = layer.holds
        is_few = layer.rows in (sizes.heads, sizes.units)
        if not held and attention.is_block and not (is_few and names.is_gate(layer.path)):
            continue
        places = _rows(layer.rows, held, sizes)
        if places is not None:
            parts += layer.row_parts(places)
        elif held:
            leaf = names.leaf_of(layer.path)
            raise NoUnitsError(STRANGE.format(leaf, layer.rows, sizes.width))
    return [*parts, *raw_parts(attention, sizes)]


def _rows(rows: int, held: str, sizes: Sizes) -> Tensor | None:
    """Where the units are in so many rows; None where they are nowhere."""
    inner, kv_inner = sizes.inner, sizes.kv_inner
    if held and set(held) <= {"k", "v"}:
        return sizes.keys(rows) if rows % kv_inner == 0 else None
    if set(held) == {"q", "k", "v"} and rows == inner + 2 * kv_inner:
        return torch.cat([sizes.queries(), sizes.keys(2 * kv_inner, offset=inner)], dim=1)
    if rows % inner == 0:
        return sizes.queries(rows)
    if rows == sizes.heads:
        return chunked(1, rows, sizes.units, sizes.repeats)
    if rows == sizes.units:
        return chunked(1, rows, sizes.units, 1)
    return sizes.keys(rows) if rows == kv_inner else None


def raw_parts(attention: Attention, sizes: Sizes) -> list[UnitPart]:
    """Parameters and buffers of the attention itself, or of norms in it, with a place a head."""
    if attention.is_block:
        return []
    holders = [("", attention.module)] + [
        (name, attention.module.get_submodule(name)) for name, _ in norms_in(attention.module)
    ]
    parts = []
    for name, module in holders:
        tensors: Mapping[str, Tensor | None] = {**module._parameters, **module._buffers}
        for leaf, tensor in tensors.items():
            dims = (
                []
                if tensor is None
                else [d for d, n in enumerate(tensor.shape) if n == sizes.heads]
            )
            if len(dims) == 1 and tensor is not None and (not name or tensor.ndim > 1):
                places = chunked(1, sizes.heads, sizes.units, sizes.repeats)
                parts.append(UnitPart(join(join(attention.path, name), leaf), dims[0], places))
    return parts


def head_numbers(attention: Attention, sizes: Sizes) -> list[Number]:
    width, repeats = sizes.width, sizes.repeats
    known = [
        (names.KV_HEADS, sizes.units, 1),
        (names.HEADS, sizes.heads, repeats),
        (names.INNER, sizes.inner, repeats * width),
        (names.KV_INNER, sizes.kv_inner, width),
    ]
    if attention.parallel is not None and attention.is_block:
        known.append((names.PARALLEL_INNER, sizes.inner, repeats * width))
    numbers = numbers_like(attention.module, attention.path, known)
    if any(number.per_unit == repeats and names.HEADS.match(number.name) for number in numbers):
        return numbers
    for path, module in attention.parents:
        above = numbers_like(module, path, [(names.HEADS, sizes.heads, repeats)])
        if above and f"{path}.".startswith(f"{attention.block}."):
            return [*numbers, *above]
    return numbers
