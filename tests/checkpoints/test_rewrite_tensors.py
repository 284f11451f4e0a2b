"""Rewriting a checkpoint's tensors: what goes wrong in a thread is not lost."""

from __future__ import annotations

import errno
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from ditprune.checkpoints import read_ahead, rewrite_tensors
from ditprune.checkpoints.shard_writer import ShardWriter
from ditprune.checkpoints.weights import Weights, layout_of
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
    rooms, size = read_ahead._Rooms(), read_ahead._SMALL_BYTES
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
