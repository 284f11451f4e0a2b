"""Writes every tensor of a denoiser once: reads ahead, changes, writes behind, remembers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch

from ditprune.checkpoints.copy_folder import ShardWriter, sha256
from ditprune.checkpoints.layout import Layout
from ditprune.checkpoints.weights import Entry, Weights, read_range
from ditprune.progress import Progress
from ditprune.writing.journal import Journal

Result = TypeVar("Result")

_SYNC_BYTES = 512_000_000  # written between two syncs: what a power cut can undo, twice at most


def stream(
    entries: Iterable[Entry],
    change: Callable[[Entry, memoryview], Result],
    write: Callable[[Entry, memoryview, Result], None],
) -> None:
    """Read every tensor, `change` its bytes in place, `write` them, each in a thread of its own.

    Three tensors are in memory at a time: one being read, one changed, one written. All calls
    come in the order of the entries, and a tensor that was changed is written whatever happens.
    """
    with ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(1) as writer, _one_torch_thread():
        ahead: Future[memoryview] | None = None
        behind: Future[None] | None = None
        queue = iter(entries)
        entry = next(queue, None)
        while entry is not None:
            raw = (ahead or reader.submit(_read, entry)).result()
            following = next(queue, None)
            ahead = reader.submit(_read, following) if following is not None else None
            result = change(entry, raw)
            if behind is not None:
                behind.result()
            behind = writer.submit(write, entry, raw, result)
            del raw
            entry = following
        if behind is not None:
            behind.result()


@contextmanager
def _one_torch_thread() -> Iterator[None]:
    """More would wait for each other in every operation while other threads read and write."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class Syncing:
    """Brings written tensors to the disk while others are written, and the journal after them.

    The journal may tell of later tensors too, which a power cut then undoes; so whoever goes on
    with it compares hashes.
    """

    def __init__(self, writer: ShardWriter, journal: Journal) -> None:
        self._writer, self._journal = writer, journal
        self._executor = ThreadPoolExecutor(1)
        self._running: Future[None] | None = None
        self._num_bytes = 0

    def __enter__(self) -> Syncing:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self._executor.shutdown()
        if kind is None and self._running is not None:
            self._running.result()

    def wrote(self, num_bytes: int) -> None:
        """Count bytes; at intervals begin a sync, after the end of the one before."""
        self._num_bytes += num_bytes
        if self._num_bytes >= _SYNC_BYTES:
            self._num_bytes = 0
            if self._running is not None:
                self._running.result()
            self._running = self._executor.submit(self._sync)

    def _sync(self) -> None:
        self._writer.sync()
        self._journal.sync()


def unchanged(
    weights: Weights | Layout,
    folder: Path,
    hashes: Mapping[str, str],
    progress: Callable[[int, int], None],
) -> set[str]:
    """The tensors whose bytes in `folder`, at the place they have in `weights`, hash as said."""
    entries = [entry for entry in weights.in_order() if entry.name in hashes]

    def holds(entry: Entry) -> bool:
        raw = read_range(folder / entry.file.name, entry.offset, entry.size_bytes)
        return sha256(raw) == hashes[entry.name]

    found = set()
    with ThreadPoolExecutor(2) as executor:
        for number, (entry, is_there) in enumerate(
            zip(entries, executor.map(holds, entries), strict=True), start=1
        ):
            found |= {entry.name} if is_there else set()
            progress(number, len(entries))
    return found


def _read(entry: Entry) -> memoryview:
    return read_range(entry.file, entry.offset, entry.size_bytes)


# The bytes to write of a tensor, and plain values to remember with it.
Change = Callable[[Entry, memoryview], tuple[memoryview, Any]]
Record = Mapping[str, Any]


def accept(_record: Record) -> None:
    """Every record is as it should be."""


def recorded(journal: Journal, denoiser: str) -> dict[str, Record]:
    """What a journal says of each tensor that is written, by its name."""
    return {
        record["tensor"]: record
        for record in journal.records
        if record.get("denoiser") == denoiser and "tensor" in record
    }


def rewrite(
    denoiser: str, source: Weights, layout: Layout, folder: Path, journal: Journal,
    change: Change, progress: Progress, check: Callable[[Record], None] = accept,
) -> dict[str, Record]:  # fmt: skip
    """Write what is not written yet.

    Args:
        denoiser: its name in the journal.
        layout: where the tensors of `source` go in `folder`.
        change: may write into the bytes that it gets.
        check: refuses a record by raising.

    Returns:
        By tensor: `sha256` of the bytes written, `source_sha256` of those read (where `change`
        left them alone), and the `note` of `change`.
    """
    known = recorded(journal, denoiser)
    with ShardWriter(layout, folder) as writer, Syncing(writer, journal) as syncing:
        hashes = {name: record["sha256"] for name, record in known.items()}
        what = "checking what is done"
        there = unchanged(layout, folder, hashes, lambda *done: progress(what, *done))
        written: dict[str, Record] = {name: known[name] for name in there}

        def write(entry: Entry, raw: memoryview, result: tuple[memoryview, Any]) -> None:
            content, note = result
            digest = sha256(content)
            record = {
                "denoiser": denoiser, "tensor": entry.name, "sha256": digest, "note": note,
                "source_sha256": digest if content is raw else sha256(raw),
            }  # fmt: skip
            check(record)
            writer.write(layout.entries[entry.name], content)
            written[entry.name] = record
            journal.append(record)
            syncing.wrote(len(content))
            progress("writing tensors", len(written), len(layout.entries))

        stream((e for e in source.in_order() if e.name not in there), change, write)
    return written
