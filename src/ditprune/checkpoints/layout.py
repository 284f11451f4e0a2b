"""Where the tensors of a folder's shards lie: as another folder has them, or packed."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from ditprune.checkpoints.compact.head import Head
from ditprune.checkpoints.weights import Entry, Weights
from ditprune.writing.tensors_file import Stored, header

NOTE = (
    "packed by ditprune: `import ditprune` before from_pretrained, or "
    "`ditprune convert FOLDER --to dense -o DENSE`"
)


@dataclass(frozen=True)
class Layout:
    """The first bytes of each shard by its name, and the place of every tensor."""

    headers: Mapping[str, bytes]
    entries: Mapping[str, Entry]

    @property
    def size_bytes(self) -> int:
        return sum(map(self.size_bytes_of, self.headers))

    def size_bytes_of(self, shard: str) -> int:
        """What a shard takes."""
        tensors = sum(e.size_bytes for e in self.entries.values() if e.file.name == shard)
        return len(self.headers[shard]) + tensors

    def in_order(self) -> Iterator[Entry]:
        """Every entry, shard by shard, by offset."""
        order = {shard: number for number, shard in enumerate(self.headers)}
        yield from sorted(self.entries.values(), key=lambda e: (order[e.file.name], e.offset))


def layout_of(weights: Weights) -> Layout:
    """The layout that a folder has."""
    headers = {shard.name: weights.header(shard) for shard in weights.shards}
    return Layout(headers, weights.entries)


def packed_layout(weights: Weights, heads: Mapping[str, Head]) -> Layout:
    """The same shards with the tensors of `heads` packed, each under its own name.

    They become uint8 and come first, then the others by the size of their numbers, so that every
    tensor is aligned.
    """
    headers: dict[str, bytes] = {}
    entries: dict[str, Entry] = {}
    for shard in weights.shards:
        placed = [_packed(entry, heads) for entry in weights.in_shard(shard)]
        placed.sort(key=lambda e: (e.name not in heads, -_item_bytes(e)))
        metadata = json.loads(weights.header(shard)[8:]).get("__metadata__") or {}
        stored = (Stored(e.name, e.dtype, e.shape, e.size_bytes) for e in placed)
        first = header({**metadata, "ditprune": NOTE}, stored)
        offset = len(first)
        for entry in placed:
            entries[entry.name] = replace(entry, offset=offset)
            offset += entry.size_bytes
        headers[shard.name] = first
    return Layout(headers, entries)


def _packed(entry: Entry, heads: Mapping[str, Head]) -> Entry:
    if entry.name not in heads:
        return entry
    size_bytes = heads[entry.name].size_bytes
    return replace(entry, dtype="U8", shape=(size_bytes,), size_bytes=size_bytes)


def _item_bytes(entry: Entry) -> int:
    return entry.size_bytes // max(1, math.prod(entry.shape))
