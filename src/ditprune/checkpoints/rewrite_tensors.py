"""Writes every tensor of a denoiser once, and goes on where a killed run stopped.

    with TensorRewriter(name, weights, layout, folder, journal, progress) as rewriter:
        for entry, raw in rewriter:  # the tensors that are not written yet
            ...  # change the bytes of `raw` in place
            rewriter.write(entry, raw, note)

The next large tensor is read and the last one is written while the caller works on the current one,
so at most three of them are in memory.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch

from ditprune.checkpoints.past_cache import is_too_large
from ditprune.checkpoints.read_ahead import SMALL_BYTES, read_ahead
from ditprune.checkpoints.shard_writer import ShardWriter
from ditprune.checkpoints.weights import Entry, Layout, Weights, read_range, sha256
from ditprune.errors import ModelError
from ditprune.progress import Progress
from ditprune.writing.staging import Journal

__all__ = [
    "Record",
    "TensorRewriter",
    "one_torch_thread",
    "written_tensors",
]

Record = Mapping[str, Any]

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
        self._past_cache = is_too_large(2 * layout.size_bytes)
        self._behind: deque[Future[None]] = deque()  # tensors being written, one of them large
        self._num_small_bytes = 0
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
            writer = ShardWriter(self._layout, self._folder, self._past_cache)
            self._shards = stack.enter_context(writer)
            self._syncer = stack.enter_context(ThreadPoolExecutor(1))
            self._writer = stack.enter_context(ThreadPoolExecutor(1))
            self.look()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with self._stack:  # waits for what is being written and synchronised
            if kind is None:
                self._finish_writing()
                if self._syncing is not None:  # which the last write may have begun
                    self._syncing.result()

    def __iter__(self) -> Iterator[tuple[Entry, memoryview]]:
        done = set(self.written)
        entries = (entry for entry in self._source.in_order() if entry.name not in done)
        return read_ahead(entries, self._past_cache)

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
        is_large = len(content) >= SMALL_BYTES
        self._num_small_bytes += 0 if is_large else len(content)
        if is_large or self._num_small_bytes >= SMALL_BYTES:
            self._finish_writing()
        before = self._behind[-1] if self._behind else None
        writing = self._writer.submit(self._write, before, entry, content, note, source, check)
        self._behind.append(writing)

    def _finish_writing(self) -> None:
        """Wait for all before; the bias behind a weight need not wait for it."""
        self._num_small_bytes = 0
        while self._behind:
            self._behind.popleft().result()

    def _write(
        self,
        before: Future[None] | None,
        entry: Entry,
        content: memoryview,
        note: Any,
        source: memoryview | None,
        check: Callable[[Record], None] | None,
    ) -> None:
        if before is not None:
            before.result()  # raises what went wrong there: nothing is written after it
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


@contextmanager
def one_torch_thread() -> Iterator[None]:
    """More would wait for each other in every operation while other threads read and write."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
