"""Rewriting a checkpoint's tensors: what goes wrong in a thread is not lost."""

from __future__ import annotations

import errno
import time
from contextlib import closing
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from ditprune.checkpoints import read_ahead, rewrite_tensors
from ditprune.checkpoints.shard_writer import ShardWriter
from ditprune.checkpoints.weights import Entry, Weights, layout_of, read_range
from ditprune.writing.staging import Journal

NUM_TENSORS, SIZE_BYTES = 4, 64 * 64 * 4


def test_an_error_of_the_sync_that_the_last_write_began_is_raised(tmp_path, monkeypatch) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "config.json").write_text("{}")
    tensors = {f"layer{i}.weight": torch.ones(64, 64) for i in range(NUM_TENSORS)}
    save_file(tensors, source / "diffusion_pytorch_model.safetensors")
    weights, journal = Weights(source), Journal(tmp_path / "journal")
    journal.start({"run": 1})

    def fail(*_: Any) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(rewrite_tensors, "_SYNC_BYTES", NUM_TENSORS * SIZE_BYTES)
    monkeypatch.setattr(ShardWriter, "sync", fail)
    with closing(journal), pytest.raises(OSError, match="Input/output error"):
        rewrite_all(weights, tmp_path / "out", journal)


def rewrite_all(weights: Weights, out: Path, journal: Journal) -> None:
    layout = layout_of(weights)
    with rewrite_tensors.TensorRewriter(
        "transformer", weights, layout, out, journal, lambda *_: None
    ) as rewriter:
        for entry, raw in rewriter:
            rewriter.write(entry, raw)


def test_memory_is_used_again_once_nothing_refers_to_it() -> None:
    rooms, size = read_ahead._Rooms(), read_ahead.SMALL_BYTES
    first, second = rooms.of(2 * size), rooms.of(3 * size)
    places = {np.asarray(part).ctypes.data for part in (first, second)}
    assert len(places) == 2
    tensor = torch.frombuffer(first, dtype=torch.uint8)[5:]
    del first, second
    third = rooms.of(size)
    assert np.asarray(third).ctypes.data in places - {tensor.data_ptr() - 5}
    del tensor
    assert np.asarray(rooms.of(2 * size)).ctypes.data in places - {np.asarray(third).ctypes.data}
    assert (third.nbytes, rooms.of(5 * size).nbytes, rooms.of(7).nbytes) == (size, 5 * size, 7)


LARGE, SMALL = read_ahead.SMALL_BYTES, 64


def entries_of(folder: Path, *sizes: int) -> list[Entry]:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text("{}")
    tensors = {f"t{i}": torch.zeros(size, dtype=torch.uint8) for i, size in enumerate(sizes)}
    save_file(tensors, folder / "diffusion_pytorch_model.safetensors")
    weights = Weights(folder)
    return [weights.entries[name] for name in sorted(weights.entries)]


def test_the_next_large_tensor_is_read_while_small_ones_wait(tmp_path, monkeypatch) -> None:
    entries = entries_of(tmp_path, LARGE, SMALL, LARGE, SMALL, LARGE)
    seen: list[int] = []

    def read(_file: Path, offset: int, *given: Any) -> Any:
        seen.append(offset)
        return read_range(_file, offset, *given)

    monkeypatch.setattr(read_ahead, "read_range", read)
    handed_out = read_ahead.read_ahead(iter(entries))
    for num_read in (3, 3, 5, 5, 5):
        entry, raw = next(handed_out)
        assert len(raw) == entry.size_bytes
        while len(seen) < num_read:
            time.sleep(0.001)
        time.sleep(0.02)
        assert seen == [entry.offset for entry in entries[:num_read]]
    assert next(handed_out, None) is None


def test_a_small_tensor_does_not_wait_for_the_large_one_before_it(tmp_path, monkeypatch) -> None:
    entries = entries_of(tmp_path / "source", LARGE, SMALL, LARGE)
    weights, journal, may_write = (
        Weights(tmp_path / "source"),
        Journal(tmp_path / "journal"),
        Event(),
    )
    journal.start({"run": 1})
    original = ShardWriter.write
    waited: list[bool] = []

    def write(self: ShardWriter, entry: Entry, raw: memoryview) -> None:
        waited.append(may_write.wait(10))
        original(self, entry, raw)

    monkeypatch.setattr(ShardWriter, "write", write)
    with (
        closing(journal),
        rewrite_tensors.TensorRewriter(
            "transformer", weights, layout_of(weights), tmp_path / "out", journal, lambda *_: None
        ) as rewriter,
    ):
        for entry in entries[:2]:
            rewriter.write(entry, weights.raw(entry))
        assert rewriter.written == {}
        may_write.set()
        rewriter.write(entries[2], weights.raw(entries[2]))
        assert {"t0", "t1"} <= set(rewriter.written)  # a large one waits for both
    assert waited == [True, True, True]
    shard = "diffusion_pytorch_model.safetensors"
    assert (tmp_path / "out" / shard).read_bytes() == (tmp_path / "source" / shard).read_bytes()
