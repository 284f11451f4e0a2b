"""Where do the tensors lie in the shards of a folder?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from ditprune.checkpoints.weights import Entry, Weights


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
