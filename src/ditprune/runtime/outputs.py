"""Memory for large outputs, kept between calls.

The C library gives what is larger than 32 MiB back to the system as soon as it is freed, and the
system clears its pages anew for the next call: up to a tenth of a step of many tokens.
"""

from __future__ import annotations

import math
import weakref
from collections import deque

import torch
from torch import Tensor

LARGE_BYTES = 32 << 20
_MOST_KEPT = 2  # a step alternates between few shapes of large outputs

# What no tensor uses. Only atomic operations touch it, as outputs die in any thread at any time.
_kept: deque[Tensor] = deque(maxlen=_MOST_KEPT)


def empty(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """A contiguous tensor on the CPU, its values undefined.

    Of a large one the memory is kept when the last tensor over it is gone, and used for the next
    of its size; a tensor that shares the memory, such as a view, keeps it from being used.
    """
    size_bytes = math.prod(shape) * dtype.itemsize
    if size_bytes < LARGE_BYTES:
        return torch.empty(shape, dtype=dtype)
    block = _taken(size_bytes)
    if block is None:
        block = torch.empty(size_bytes, dtype=torch.uint8)
    lease = block.numpy()  # an object of its own, which lives as long as the storage over it
    weakref.finalize(lease, _kept.append, block).atexit = False
    return torch.from_numpy(lease).view(dtype).view(shape)


def release() -> None:
    """Give the memory back that no tensor uses."""
    _kept.clear()


def _taken(size_bytes: int) -> Tensor | None:
    for _ in range(_MOST_KEPT):
        try:
            block = _kept.popleft()
        except IndexError:
            return None
        if block.numel() == size_bytes:
            return block
        _kept.append(block)
    return None
