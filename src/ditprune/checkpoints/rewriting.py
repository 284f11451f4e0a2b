"""Writes every tensor of a denoiser once, in whatever layout, and remembers what is written."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ditprune.checkpoints.journal import Journal
from ditprune.checkpoints.layout import Layout
from ditprune.checkpoints.rewrite import ShardWriter, sha256
from ditprune.checkpoints.stream import Syncing, stream, unchanged
from ditprune.checkpoints.weights import Entry, Weights
from ditprune.progress import Report

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
    change: Change, report: Report, check: Callable[[Record], None] = accept,
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
        there = unchanged(layout, folder, hashes, lambda *done: report(what, *done))
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
            report("writing tensors", len(written), len(layout.entries))

        stream((e for e in source.in_order() if e.name not in there), change, write)
    return written
