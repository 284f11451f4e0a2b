"""Memory for large outputs, kept between calls.

The C library gives what is larger than 32 MiB back to the system as soon as it is freed, and the
system clears its pages anew for the next call: up to a tenth of a step of many tokens.
"""

from __future__ import annotations

import math
import weakref
from collections import deque
from typing import Any

import torch
from torch import Tensor

LARGE_BYTES = 32 << 20
_MOST_KEPT = 2  # a step alternates between few shapes of large outputs

# What outputs lie in, with the lease that dies with the last of them. It is asked whether it lives,
# and never tells: a tensor may die in any thread, where a signal's exception would be lost.
_blocks: deque[tuple[weakref.ref[Any], Tensor]] = deque(maxlen=_MOST_KEPT)


def empty(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """A contiguous tensor on the CPU, its values undefined.

    Of a large one the memory is kept when the last tensor over it is gone, and used for the next
    of its size; a tensor that shares the memory, such as a view, keeps it from being used. A large
    one cannot be resized.
    """
    size_bytes = math.prod(shape) * dtype.itemsize
    if size_bytes < LARGE_BYTES:
        return torch.empty(shape, dtype=dtype, device="cpu")
    block = _unused(size_bytes)
    if block is None:
        block = _new(size_bytes)
    lease = block.numpy()  # an object of its own, which lives as long as the storage over it
    _blocks.append((weakref.ref(lease), block))
    view = torch.from_numpy(lease).view(dtype).view(shape)
    own = torch.empty(0, dtype=dtype, device="cpu")  # no view, as autograd sees it
    return own.set_(view.untyped_storage(), 0, shape, view.stride())


def release() -> None:
    """Give the memory back that no tensor uses, now or when the last tensor over it is gone."""
    _blocks.clear()


def _new(size_bytes: int) -> Tensor:
    try:
        return torch.empty(size_bytes, dtype=torch.uint8, device="cpu")
    except RuntimeError:  # no memory; there may be some once ours of other sizes is free
        release()
        return torch.empty(size_bytes, dtype=torch.uint8, device="cpu")


def _unused(size_bytes: int) -> Tensor | None:
    for _ in range(_MOST_KEPT):
        try:
            lease, block = _blocks.popleft()  # atomic, so that no two threads take one
        except IndexError:
            return None
        if block.numel() == size_bytes and lease() is None:
            return block
        _blocks.append((lease, block))
    return None
