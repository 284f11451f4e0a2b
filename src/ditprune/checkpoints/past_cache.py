"""How are files that memory cannot hold read and written past the system's cache?

The cache takes a page of memory for every 4 KiB of a file, and copies. Where it has filled the
memory, that takes longer than all that is done with the tensors, and what it holds is gone before
it is read again. So whole blocks go straight between the disk and the memory of a tensor, which has
to begin as far from the edge of a block as its place in the file does. What is left at both ends
goes through the cache, and so does everything where a file system refuses.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from ditprune.writing.own import no_follow

BLOCK = 4096


def is_too_large(num_bytes: int) -> bool:
    """Whether the cache of so many bytes of files would be more than half of the memory."""
    return hasattr(os, "O_DIRECT") and num_bytes > psutil.virtual_memory().total // 2


def shift_of(room: np.ndarray[Any, Any], offset: int) -> int:
    """Where in a room to put what lies at this offset of a file; less than two blocks."""
    return int(-room.ctypes.data % BLOCK + offset % BLOCK)


def read_past_cache(file: Path, offset: int, raw: memoryview) -> list[slice]:
    """Read whole blocks of a file into `raw`; the parts of it that are left to read."""
    return _move(
        lambda flags: os.open(file, flags | os.O_RDONLY),
        lambda descriptor, part, at: os.preadv(descriptor, [part], at),
        offset,
        raw,
    )


def write_past_cache(file: Path, offset: int, raw: memoryview) -> list[slice]:
    """Write `raw` into whole blocks of a file; the parts of it that are left to write."""
    return _move(lambda flags: no_follow(str(file), flags | os.O_WRONLY), os.pwrite, offset, raw)


def _move(
    opened: Callable[[int], int], move: Callable[[int, memoryview, int], int], offset: int,
    raw: memoryview,
) -> list[slice]:  # fmt: skip
    """What is left to move: all of it where the system refuses; the cache's way says why."""
    blocks = _whole_blocks(raw, offset)
    done = blocks.start
    if done == blocks.stop:
        return [slice(0, len(raw))]
    try:
        descriptor = opened(os.O_DIRECT)
        try:
            while done < blocks.stop and (
                count := move(descriptor, raw[done : blocks.stop], offset + done)
            ):
                done += count
        finally:
            os.close(descriptor)
    except OSError:
        return [slice(0, len(raw))]
    return [slice(0, blocks.start), slice(done, len(raw))]


def _whole_blocks(raw: memoryview, offset: int) -> slice:
    """The part of some bytes that are whole blocks of the file and of memory; it may be empty."""
    first = -offset % BLOCK
    last = len(raw) - (offset + len(raw)) % BLOCK
    if first >= last or (np.frombuffer(raw, np.uint8).ctypes.data - offset) % BLOCK:
        return slice(0, 0)
    return slice(first, last)
