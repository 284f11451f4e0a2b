"""What is an attention, and how wide are its heads?"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ditprune.shrinking import names
from ditprune.shrinking.layers import OwnLayer, chunked, norms_in, numbers_of, own_layers

ONE_HEAD = "it has one head of keys and values"
UNKNOWN = "it does not say how many heads it has"
ACROSS = (
    "its norms of queries and keys run across heads, so that the other heads change when one goes"
)


class NoUnitsError(Exception):
    """Why the heads of an attention all stay."""


@dataclass(frozen=True, eq=False)
class Attention:
    """A module with projections of queries, keys and values.

    Args:
        layers: its own.
        parents: its ancestors, the nearest first, each with its path.
    """

    path: str
    module: nn.Module
    block: str
    layers: tuple[OwnLayer, ...]
    parents: tuple[tuple[str, nn.Module], ...]

    @property
    def is_block(self) -> bool:
        return self.path == self.block

    @property
    def outputs(self) -> list[OwnLayer]:
        """What projects what its heads give."""
        parallel = self.parallel
        named = [x for x in self.layers if names.is_output(x.path) and x is not parallel]
        if parallel is not None:
            return [x for x in named if x.columns > x.rows][:1]
        widest = max((x.rows for x in self.layers if "q" in x.holds), default=0)
        return [x for x in named if x.columns <= widest]

    @property
    def parallel(self) -> OwnLayer | None:
        """The projection that also holds the first layer of an MLP."""
        wide = (x for x in self.layers if names.PARALLEL.match(names.leaf_of(x.path)))
        return next((x for x in wide if x.rows > 3 * x.columns), None)


@dataclass(frozen=True)
class Sizes:
    """How wide an attention is.

    Args:
        heads: of queries.
        units: heads of keys and values.
        width: of a head.
    """

    heads: int
    units: int
    width: int

    @property
    def repeats(self) -> int:
        return self.heads // self.units

    @property
    def inner(self) -> int:
        return self.heads * self.width

    @property
    def kv_inner(self) -> int:
        return self.units * self.width

    def queries(self, rows: int | None = None, offset: int = 0) -> Tensor:
        """Places of the units along a dimension of one or several chunks of queries."""
        num_chunks = (self.inner if rows is None else rows) // self.inner
        return chunked(num_chunks, self.inner, self.units, self.repeats * self.width, offset)

    def keys(self, rows: int | None = None, offset: int = 0) -> Tensor:
        num_chunks = (self.kv_inner if rows is None else rows) // self.kv_inner
        return chunked(num_chunks, self.kv_inner, self.units, self.width, offset)


def attentions_in(
    block: nn.Module, path: str, above: Sequence[tuple[str, nn.Module]]
) -> Iterator[Attention]:
    """The attentions of a block, the innermost first."""
    modules = dict(block.named_modules(prefix=path))
    claimed: set[int] = set()
    for name in sorted(modules, key=lambda name: -name.count(".")):
        module = modules[name]
        if isinstance(module, (nn.ModuleList, nn.ModuleDict)) and name != path:
            continue
        layers = tuple(x for x in own_layers(module, name) if id(x.module) not in claimed)
        if {"q", "k", "v"} <= set("".join(x.holds for x in layers)):
            claimed |= {id(x.module) for x in layers if x.holds}
            inside = [(p, m) for p, m in modules.items() if f"{name}.".startswith(f"{p}.")]
            inside = sorted(inside, key=lambda pair: -len(pair[0]))
            yield Attention(name, module, path, layers, (*inside, *above))


def width_of_queries(attention: Attention) -> int:
    queries = [x for x in attention.layers if x.holds == "q"]
    if queries:
        return queries[0].rows
    fused = next(x for x in attention.layers if x.holds == "qkv")
    return fused.rows // 3


def sizes_of(attention: Attention, inner: int) -> Sizes:
    norms = [(n, shape) for n, shape in norms_in(attention.module) if names.QK_NORM.search(n)]
    heads = _count(attention, names.HEADS, inner) or _count_by_norm(norms, inner)
    if heads is None:
        raise NoUnitsError(UNKNOWN)
    width = inner // heads
    units = _count_kv(attention, width, heads)
    for _, shape in norms:
        across = shape and torch.Size(shape).numel() != width and shape != (heads, width)
        if across and heads > 1:
            raise NoUnitsError(ACROSS)
    if units == 1:
        raise NoUnitsError(ONE_HEAD)
    return Sizes(heads, units, width)


def _count(attention: Attention, pattern: re.Pattern[str], inner: int) -> int | None:
    """The number of heads that the attention, or else what it is in, says."""
    for _, module in attention.parents:
        for name, value in numbers_of(module):
            if pattern.match(name) and value > 0 and inner % value == 0:
                return value
    return None


def _count_by_norm(norms: Sequence[tuple[str, tuple[int, ...]]], inner: int) -> int | None:
    widths = {shape[-1] for _, shape in norms if shape and inner % shape[-1] == 0}
    return inner // widths.pop() if len(widths) == 1 else None


def _count_kv(attention: Attention, width: int, heads: int) -> int:
    """The number of heads of keys and values."""
    said = _count(attention, names.KV_HEADS, heads)
    if said is not None:
        return said
    keys = [x.rows for x in attention.layers if x.holds in ("k", "v")]
    units = min((rows // width for rows in keys), default=heads)
    return units if units and units <= heads and heads % units == 0 else heads
