"""Files that memory cannot hold go past the system's cache, and no byte changes."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from ditprune.checkpoints import past_cache, rewrite_tensors
from ditprune.checkpoints.past_cache import BLOCK, read_past_cache, shift_of, write_past_cache
from ditprune.checkpoints.weights import Weights, layout_of
from ditprune.errors import ModelError
from ditprune.writing.staging import Journal

SIZES = [1 << 20, 7, (1 << 20) + 4097, 3 << 20, (1 << 20) + 1]
SHARD = "diffusion_pytorch_model.safetensors"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    draw = torch.Generator().manual_seed(0)
    tensors = {
        f"layer{i}": torch.randint(0, 256, (size,), generator=draw, dtype=torch.uint8)
        for i, size in enumerate(SIZES)
    }
    save_file(tensors, folder / SHARD)
    return folder


@pytest.fixture
def moved(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """How many bytes went past the cache, each way."""
    counts = {"preadv": 0, "pwrite": 0}

    def spy(name: str) -> None:
        original = getattr(os, name)

        def count(*given: Any) -> int:
            done: int = original(*given)
            counts[name] += done
            return done

        monkeypatch.setattr(os, name, count)

    spy("preadv")
    spy("pwrite")
    return counts


def rewritten(source: Path, out: Path, cut_bytes: int = 0) -> bytes:
    """The shard after every tensor was read and written.

    Args:
        cut_bytes: that the source loses at its end once it is open.
    """
    weights, journal = Weights(source), Journal(out.with_suffix(".journal"))
    journal.start({"run": 1})
    os.truncate(source / SHARD, weights.size_bytes - cut_bytes)
    with (
        closing(journal),
        rewrite_tensors.TensorRewriter(
            "transformer", weights, layout_of(weights), out, journal, lambda *_: None
        ) as rewriter,
    ):
        for entry, raw in rewriter:
            rewriter.write(entry, raw)
    return (out / SHARD).read_bytes()


def has_direct(folder: Path) -> bool:
    try:
        os.close(os.open(folder / "probe", os.O_CREAT | os.O_RDWR | os.O_DIRECT))
    except (OSError, AttributeError):
        return False
    return True


def test_large_tensors_go_past_the_cache_and_small_ones_through_it(
    source, tmp_path, moved, monkeypatch
) -> None:
    if not has_direct(tmp_path):
        pytest.skip("this file system has a cache only")
    expected = (source / SHARD).read_bytes()
    assert rewritten(source, tmp_path / "small") == expected
    assert moved == {"preadv": 0, "pwrite": 0}  # memory can hold them
    monkeypatch.setattr(past_cache.psutil, "virtual_memory", lambda: Memory(2 * sum(SIZES)))
    assert rewritten(source, tmp_path / "large") == expected
    large = [size for size in SIZES if size > 7]
    for count in moved.values():
        assert sum(large) - 2 * BLOCK * len(large) < count < sum(large)
        assert count % BLOCK == 0


class Memory:
    """Of a machine."""

    def __init__(self, total: int) -> None:
        self.total = total


@pytest.mark.parametrize("step", ["open", "preadv", "pwrite"])
def test_what_a_file_system_refuses_goes_through_the_cache(
    step, source, tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr(rewrite_tensors, "is_too_large", lambda _: True)
    original = getattr(os, step)

    def refuse(*given: Any, **words: Any) -> Any:
        if step != "open" or given[1] & os.O_DIRECT:
            raise OSError(errno.EINVAL, "Invalid argument")
        return original(*given, **words)

    monkeypatch.setattr(os, step, refuse)
    assert rewritten(source, tmp_path / "out") == (source / SHARD).read_bytes()


def test_a_file_that_ends_early_is_refused(source, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(rewrite_tensors, "is_too_large", lambda _: True)
    with pytest.raises(ModelError, match="ends 8192 bytes early"):
        rewritten(source, tmp_path / "out", 2 * BLOCK)


def pieces() -> Iterator[tuple[int, int]]:
    for offset in (0, 8, BLOCK - 8, BLOCK, 3 * BLOCK + 40):
        for size in (1, BLOCK - 8, BLOCK, 2 * BLOCK + 17, 9 * BLOCK):
            yield offset, size


def test_what_is_left_and_what_went_are_all_of_it(tmp_path) -> None:
    file, content = tmp_path / "file", np.random.default_rng(0).bytes(16 * BLOCK)
    for offset, size in pieces():
        room = np.zeros(size + 2 * BLOCK, np.uint8)
        raw = room[shift_of(room, offset) :][:size].data
        file.write_bytes(content)
        for left in read_past_cache(file, offset, raw):
            raw[left] = content[offset : offset + size][left]
        assert bytes(raw) == content[offset : offset + size]
        raw[:] = bytes(reversed(raw))
        left = write_past_cache(file, offset, raw)
        after = bytearray(file.read_bytes())
        for part in left:
            after[offset + part.start : offset + part.stop] = raw[part]
        assert after == content[:offset] + bytes(raw) + content[offset + size :]


def test_memory_that_does_not_fit_the_blocks_goes_through_the_cache(tmp_path, moved) -> None:
    room = np.zeros(6 * BLOCK, np.uint8)
    raw = room[shift_of(room, 8) :][: 4 * BLOCK].data
    assert write_past_cache(tmp_path / "file", 16, raw) == [slice(0, 4 * BLOCK)]
    assert read_past_cache(tmp_path / "file", 0, memoryview(b"")) == [slice(0, 0)]
    assert moved == {"preadv": 0, "pwrite": 0}


def test_a_link_is_not_written_through(tmp_path) -> None:
    (tmp_path / "elsewhere").write_bytes(bytes(4 * BLOCK))
    (tmp_path / "file").symlink_to(tmp_path / "elsewhere")
    room = np.ones(6 * BLOCK, np.uint8)
    raw = room[shift_of(room, 0) :][: 4 * BLOCK].data
    assert write_past_cache(tmp_path / "file", 0, raw) == [slice(0, 4 * BLOCK)]
    assert not any((tmp_path / "elsewhere").read_bytes())
