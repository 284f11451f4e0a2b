"""Writes tensors into shards of a given layout, in any order."""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO

from ditprune.checkpoints.past_cache import write_past_cache
from ditprune.checkpoints.weights import Entry, Layout
from ditprune.writing.own import no_follow

_PIECE_BYTES = 1 << 16  # written at once: for more the system looks for pages that lie together


class ShardWriter:
    """Writes tensors, in any order, into shards that have the headers of a layout.

    Shards that are there already keep the tensors that lie in them.

    Args:
        past_cache: tensors are not written through the system's cache, where their memory is that
            of `read_ahead` and their place is as it was.
    """

    def __init__(self, layout: Layout, folder: Path, past_cache: bool = False) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._past_cache = folder, past_cache
        self._files: dict[str, BinaryIO] = {}
        for shard, header in layout.headers.items():
            target = folder / shard
            target.touch()
            with open(target, "r+b", opener=no_follow) as file:
                file.write(header)
                file.truncate(layout.size_bytes_of(shard))

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._files.values():
            file.close()

    def write(self, entry: Entry, raw: bytes | memoryview) -> None:
        """Put one tensor's bytes at its place; a kill later does not undo it."""
        name = entry.file.name
        if name not in self._files:
            place = self._folder / name
            self._files[name] = open(place, "r+b", buffering=0, opener=no_follow)  # noqa: SIM115
        file, raw = self._files[name], memoryview(raw)
        left = [slice(0, len(raw))]
        if self._past_cache:
            left = write_past_cache(self._folder / name, entry.offset, raw)
        for part in left:
            file.seek(entry.offset + part.start)
            rest = raw[part]
            while rest.nbytes:
                rest = rest[file.write(rest[:_PIECE_BYTES]) :]

    def sync(self) -> None:
        """Bring to the disk what was written; a power cut later does not undo it."""
        for file in list(self._files.values()):
            os.fsync(file.fileno())
