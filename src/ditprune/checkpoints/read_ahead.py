"""Hands out tensors while the next one is read, into memory that is used again and again."""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np

from ditprune.checkpoints.past_cache import BLOCK, read_past_cache, shift_of
from ditprune.checkpoints.weights import Entry, read_range

SMALL_BYTES = 1 << 20  # memory of this size is not asked of the system each time


def read_ahead(
    entries: Iterable[Entry], past_cache: bool = False
) -> Iterator[tuple[Entry, memoryview]]:
    """Each tensor's bytes, while the next large one is read in a thread of its own.

    Args:
        past_cache: large tensors are not read through the system's cache.
    """
    queue, rooms = iter(entries), _Rooms()
    ahead: deque[tuple[Entry, Future[memoryview]]] = deque()

    def read(entry: Entry) -> memoryview:
        if not past_cache or entry.size_bytes < SMALL_BYTES:
            room = rooms.of(entry.size_bytes)
            return read_range(entry.file, entry.offset, entry.size_bytes, room)
        room = rooms.of(entry.size_bytes, entry.offset)
        for rest in read_past_cache(entry.file, entry.offset, room):
            offset, size = entry.offset + rest.start, rest.stop - rest.start
            read_range(entry.file, offset, size, room[rest])
        return room

    def go_on() -> None:
        """Up to a large tensor; reading only the bias behind a weight would leave a pause."""
        while sum(entry.size_bytes for entry, _ in ahead) < SMALL_BYTES:
            if (entry := next(queue, None)) is None:
                return
            ahead.append((entry, reader.submit(read, entry)))

    with ThreadPoolExecutor(1) as reader:
        go_on()
        while ahead:
            entry, reading = ahead.popleft()
            raw = reading.result()
            del reading
            go_on()
            yield entry, raw
            del raw  # or it would stay in memory while the one after the next is read


class _Rooms:
    """Memory to read tensors into, used again once nothing refers to what was read there.

    The system clears new memory before it hands it out, which takes as long as reading. There are
    as many rooms as tensors in memory, each of the largest tensor so far at most.
    """

    def __init__(self) -> None:
        self._idle: list[Any] = []  # any thread adds, one takes

    def of(self, size_bytes: int, offset: int | None = None) -> memoryview:
        """So many bytes, with anything in them.

        Args:
            offset: of a file, whose blocks are to be blocks of memory.
        """
        if size_bytes < SMALL_BYTES:
            return np.empty(size_bytes, np.uint8).data
        idle = [self._idle.pop() for _ in range(len(self._idle))]
        idle.sort(key=lambda room: room.nbytes)
        needed_bytes = size_bytes if offset is None else size_bytes + 2 * BLOCK
        fitting = next((i for i, room in enumerate(idle) if room.nbytes >= needed_bytes), None)
        if fitting is None:
            del idle[-1:]
            room = np.empty(needed_bytes, np.uint8)  # numpy asks the system for huge pages
        else:
            room = idle.pop(fitting)
        self._idle.extend(idle)
        start = 0 if offset is None else shift_of(room, offset)
        lease = room[
            start : start + size_bytes
        ]  # a new object, which lives as long as what refers to it
        weakref.finalize(lease, self._idle.append, room).atexit = False
        return lease.data
