"""How is the memory of large outputs kept between calls?

The C library returns blocks larger than 32 MiB to the system as soon as they are freed, and the
system clears their pages again for the next call. This takes up to a tenth of a step with many
tokens.
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

# The memory of outputs, each with a lease that dies with the last tensor over it. The reference is
# polled and has no callback: a tensor may die in any thread, where a signal's exception is lost.
_blocks: deque[tuple[weakref.ref[Any], Tensor]] = deque(maxlen=_MOST_KEPT)


def empty(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """A contiguous tensor on the CPU with undefined values.

    The memory of a large tensor is kept after the last tensor over it is gone, and reused for the
    next one of its size. Views keep their memory from being reused. A large tensor cannot be
    resized.
    """
    size_bytes = math.prod(shape) * dtype.itemsize
    if size_bytes < LARGE_BYTES:
        return torch.empty(shape, dtype=dtype, device="cpu")
    block = _unused(size_bytes)
    if block is None:
        try:
            block = torch.empty(size_bytes, dtype=torch.uint8, device="cpu")
        except RuntimeError:  # out of memory; free the kept blocks of other sizes and try again
            release()
            block = torch.empty(size_bytes, dtype=torch.uint8, device="cpu")
    lease = block.numpy()  # a new object, which lives as long as the storage over it
    _blocks.append((weakref.ref(lease), block))
    view = torch.from_numpy(lease).view(dtype).view(shape)
    output = torch.empty(0, dtype=dtype, device="cpu")  # not a view to autograd
    return output.set_(view.untyped_storage(), 0, shape, view.stride())


def release() -> None:
    """Free the kept memory, now or when the last tensor over it is gone."""
    _blocks.clear()


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
