"""Writes every tensor of a denoiser once, and goes on where a killed run stopped.

    with TensorRewriter(name, weights, layout, folder, journal, progress) as rewriter:
        for entry, raw in rewriter:  # the tensors that are not written yet
            ...  # change the bytes of `raw` in place
            rewriter.write(entry, raw, note)

The next tensor is read and the last one is written while the caller works on the current one, so
at most three tensors are in memory.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

from ditprune.checkpoints.weights import Entry, Layout, Weights, read_range, sha256
from ditprune.errors import ModelError
from ditprune.progress import Progress
from ditprune.writing.own import no_follow
from ditprune.writing.staging import Journal

__all__ = [
    "Record",
    "ShardWriter",
    "TensorRewriter",
    "one_torch_thread",
    "read_ahead",
    "written_tensors",
]

Record = Mapping[str, Any]

_SMALL_BYTES = 1 << 20  # memory of this size is not asked of the system each time
_PIECE_BYTES = 1 << 16  # written at once: for more the system looks for pages that lie together
_SYNC_BYTES = 512_000_000  # written between two syncs; a power cut undoes at most twice as much


class TensorRewriter:
    """Reads, hands out and writes the tensors of one denoiser that are not written yet.

    Args:
        denoiser: its name in the journal.
        source: the tensors to read.
        layout: where each of them goes in `folder`.
        journal: gets a record for each tensor, after its bytes.
        progress: is told the number of written tensors.

    Attributes:
        written: by tensor: `sha256` of the bytes written, `source_sha256` of the bytes read, and
            the `note` given to `write`.
    """

    def __init__(
        self,
        denoiser: str,
        source: Weights,
        layout: Layout,
        folder: Path,
        journal: Journal,
        progress: Progress,
    ) -> None:
        self._denoiser, self._source, self._layout = denoiser, source, layout
        self._folder, self._journal, self._progress = folder, journal, progress
        self._behind: Future[None] | None = None  # the tensor being written
        self._syncing: Future[None] | None = None
        self._num_unsynced_bytes = 0
        self.written: dict[str, Record] = {}
        self._has_looked = False

    def look(self) -> set[str]:
        """The tensors that are not written yet; what a killed run has written is hashed for it."""
        if not self._has_looked:
            known = written_tensors(self._journal, self._denoiser)
            self.written = {name: known[name] for name in self._unchanged(known)}
            self._has_looked = True
        return self._layout.entries.keys() - self.written.keys()

    def __enter__(self) -> TensorRewriter:
        with ExitStack() as stack:
            stack.enter_context(one_torch_thread())
            self._shards = stack.enter_context(ShardWriter(self._layout, self._folder))
            self._syncer = stack.enter_context(ThreadPoolExecutor(1))
            self._writer = stack.enter_context(ThreadPoolExecutor(1))
            self.look()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with self._stack:  # waits for what is being written and synchronised
            if kind is None:
                if self._behind is not None:
                    self._behind.result()
                if self._syncing is not None:  # which the last write may have begun
                    self._syncing.result()

    def __iter__(self) -> Iterator[tuple[Entry, memoryview]]:
        done = set(self.written)
        return read_ahead(entry for entry in self._source.in_order() if entry.name not in done)

    def write(
        self,
        entry: Entry,
        content: memoryview,
        note: Any = None,
        source: memoryview | None = None,
        check: Callable[[Record], None] | None = None,
    ) -> None:
        """Write a tensor's bytes, in a thread of its own.

        Args:
            note: plain values to remember with it.
            source: the bytes that were read, if `content` may hold others.
            check: refuses the record by raising, before the bytes are written.
        """
        if self._behind is not None:
            self._behind.result()
        self._behind = self._writer.submit(self._write, entry, content, note, source, check)

    def _write(
        self,
        entry: Entry,
        content: memoryview,
        note: Any,
        source: memoryview | None,
        check: Callable[[Record], None] | None,
    ) -> None:
        digest = sha256(content)
        record = {
            "denoiser": self._denoiser,
            "tensor": entry.name,
            "sha256": digest,
            "note": note,
            "source_sha256": digest if source is None or source is content else sha256(source),
        }
        if check is not None:
            check(record)
        self._shards.write(self._layout.entries[entry.name], content)
        self.written[entry.name] = record
        self._journal.append(record)
        self._sync_now_and_then(len(content))
        self._progress("writing tensors", len(self.written), len(self._layout.entries))

    def _sync_now_and_then(self, num_bytes: int) -> None:
        """Bring written tensors to the disk while others are written, and the journal after them.

        The journal may tell of later tensors too, which a power cut then undoes; so a resumed run
        compares hashes.
        """
        self._num_unsynced_bytes += num_bytes
        if self._num_unsynced_bytes >= _SYNC_BYTES:
            self._num_unsynced_bytes = 0
            if self._syncing is not None:
                self._syncing.result()
            self._syncing = self._syncer.submit(self._sync)

    def _sync(self) -> None:
        self._shards.sync()
        self._journal.sync()

    def _unchanged(self, known: Mapping[str, Record]) -> set[str]:
        """The tensors whose bytes in the folder still hash as their records say."""
        entries = [entry for entry in self._layout.in_order() if entry.name in known]

        def holds(entry: Entry) -> bool:
            try:
                raw = read_range(self._folder / entry.file.name, entry.offset, entry.size_bytes)
            except ModelError:  # its shard is gone
                return False
            return sha256(raw) == known[entry.name]["sha256"]

        unchanged = set()
        with ThreadPoolExecutor(2) as executor:
            answers = zip(entries, executor.map(holds, entries), strict=True)
            for number, (entry, is_unchanged) in enumerate(answers, start=1):
                if is_unchanged:
                    unchanged.add(entry.name)
                self._progress("checking what is done", number, len(entries))
        return unchanged


def written_tensors(journal: Journal, denoiser: str) -> dict[str, Record]:
    """What a journal says of each tensor that is written, by its name."""
    return {
        record["tensor"]: record
        for record in journal.records
        if record.get("denoiser") == denoiser and "tensor" in record
    }


def read_ahead(entries: Iterable[Entry]) -> Iterator[tuple[Entry, memoryview]]:
    """Each tensor's bytes, while the next tensor is read in a thread of its own."""
    queue, rooms = iter(entries), _Rooms()
    entry = next(queue, None)

    def read(entry: Entry) -> memoryview:
        room = rooms.of(entry.size_bytes)
        return read_range(entry.file, entry.offset, entry.size_bytes, room)

    with ThreadPoolExecutor(1) as reader:
        ahead = None if entry is None else reader.submit(read, entry)
        while entry is not None and ahead is not None:
            raw = ahead.result()
            following = next(queue, None)
            ahead = None if following is None else reader.submit(read, following)
            yield entry, raw
            del raw  # or it would stay in memory while the one after the next is read
            entry = following


class _Rooms:
    """Memory to read tensors into, used again once nothing refers to what was read there.

    The system clears new memory before it hands it out, which takes as long as reading. There are
    as many rooms as tensors in memory, each of the largest tensor so far at most.
    """

    def __init__(self) -> None:
        self._idle: list[Any] = []  # any thread adds, one takes

    def of(self, size_bytes: int) -> memoryview:
        """So many bytes, with anything in them."""
        if size_bytes < _SMALL_BYTES:
            return np.empty(size_bytes, np.uint8).data
        idle = [self._idle.pop() for _ in range(len(self._idle))]
        idle.sort(key=lambda room: room.nbytes)
        fitting = next((i for i, room in enumerate(idle) if room.nbytes >= size_bytes), None)
        if fitting is None:
            del idle[-1:]
            room = np.empty(size_bytes, np.uint8)  # numpy asks the system for huge pages
        else:
            room = idle.pop(fitting)
        self._idle.extend(idle)
        lease = room[:size_bytes]  # a new object, which lives as long as what refers to it
        weakref.finalize(lease, self._idle.append, room).atexit = False
        return lease.data


@contextmanager
def one_torch_thread() -> Iterator[None]:
    """More would wait for each other in every operation while other threads read and write."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class ShardWriter:
    """Writes tensors, in any order, into shards that have the headers of a layout.

    Shards that are there already keep the tensors that lie in them.
    """

    def __init__(self, layout: Layout, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
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
        file = self._files[name]
        file.seek(entry.offset)
        rest = memoryview(raw)
        while rest.nbytes:
            rest = rest[file.write(rest[:_PIECE_BYTES]) :]

    def sync(self) -> None:
        """Bring to the disk what was written; a power cut later does not undo it."""
        for file in list(self._files.values()):
            os.fsync(file.fileno())
