"""What does a packed weight say about itself, and how many bytes does each part of it take?

The package's docstring describes the format.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass

from ditprune.errors import ModelError

ITEM_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
# (N, M): the bits of a position. For every other N:M a mask is as small.
GROUPS = {(2, 4): 2, (1, 2): 1, (1, 4): 2, (1, 8): 4}

_MAGIC = b"DPc1"
_FIXED = struct.Struct("<4s4sHHIQ")
_MOST_AXES = 8


@dataclass(frozen=True)
class Head:
    """A packed weight without its data.

    Args:
        dtype: of the values, a key of ITEM_BYTES.
        shape: of the dense weight.
        num_values: how many values are kept; those of N:M may be zeros.
        group: (N, M), or None where the positions are a mask.
    """

    dtype: str
    shape: tuple[int, ...]
    num_values: int
    group: tuple[int, int] | None = None

    @property
    def form(self) -> str:
        """`mask`, or N:M."""
        return "mask" if self.group is None else "{}:{}".format(*self.group)

    @property
    def num_weights(self) -> int:
        return math.prod(self.shape)

    @property
    def dense_bytes(self) -> int:
        return self.num_weights * ITEM_BYTES[self.dtype]

    @property
    def value_bytes(self) -> int:
        """Bytes of the values, without padding."""
        return self.num_values * ITEM_BYTES[self.dtype]

    @property
    def position_bytes(self) -> int:
        """Bytes of the positions, without padding."""
        bits = self.num_values * GROUPS[self.group] if self.group else self.num_weights
        return -(-bits // 8)

    @property
    def values_start(self) -> int:
        return _FIXED.size + 8 * len(self.shape)

    @property
    def positions_start(self) -> int:
        return self.values_start + padded(self.value_bytes)

    @property
    def size_bytes(self) -> int:
        """Bytes of the whole packed weight, a multiple of 8."""
        return self.positions_start + padded(self.position_bytes)

    @property
    def is_smaller(self) -> bool:
        """Whether the packed weight is smaller than the dense one."""
        return self.size_bytes < self.dense_bytes

    def to_bytes(self) -> bytes:
        fixed = _FIXED.pack(
            _MAGIC, self.dtype.encode(), *(self.group or (0, 0)), len(self.shape), self.num_values
        )
        return fixed + struct.pack(f"<{len(self.shape)}Q", *self.shape)


def padded(num_bytes: int) -> int:
    """The next multiple of 8."""
    return -(-num_bytes // 8) * 8


def read_head(raw: memoryview, name: str) -> Head:
    """Read the head of a packed weight and check that it fits these bytes; allocates nothing.

    Raises ModelError, with the name, for anything that `Head.to_bytes` does not write.
    """
    if raw.nbytes < _FIXED.size:
        raise not_packed(name, f"{raw.nbytes} bytes, expected at least {_FIXED.size}")
    magic, dtype_bytes, num_keep, size, num_axes, num_values = _FIXED.unpack_from(raw)
    dtype = dtype_bytes.rstrip(b"\0").decode("ascii", "replace")
    if magic != _MAGIC:
        raise not_packed(name, f"begins with {magic!r}, expected {_MAGIC!r}")
    if dtype not in ITEM_BYTES:
        raise not_packed(name, f"dtype {dtype!r}, expected one of {', '.join(ITEM_BYTES)}")
    if not 1 <= num_axes <= _MOST_AXES or raw.nbytes < _FIXED.size + 8 * num_axes:
        raise not_packed(name, f"{num_axes} axes in {raw.nbytes} bytes, expected 1 to {_MOST_AXES}")
    shape = struct.unpack_from(f"<{num_axes}Q", raw, _FIXED.size)
    group = None if (num_keep, size) == (0, 0) else (num_keep, size)
    if group is not None and group not in GROUPS:
        known = ", ".join(f"{n}:{m}" for n, m in GROUPS)
        raise not_packed(name, f"{num_keep}:{size}, expected a mask or one of {known}")
    head = Head(dtype, shape, num_values, group)
    counts = f"{num_values} values of {head.num_weights} weights"
    if num_values > head.num_weights or not head.num_weights:
        raise not_packed(name, counts)
    if group and (head.num_weights % size or num_values != head.num_weights // size * num_keep):
        raise not_packed(name, f"{counts} under {head.form}")
    if head.size_bytes != raw.nbytes:
        raise not_packed(name, f"{raw.nbytes} bytes, its head says {head.size_bytes}")
    return head


def seems_packed(raw: memoryview) -> bool:
    """Whether bytes begin as a packed weight does."""
    return bytes(raw[: len(_MAGIC)]) == _MAGIC


def not_packed(name: str, reason: str) -> ModelError:
    """The error for bytes that are no packed weight."""
    return ModelError(f"{name}: not a packed weight ({reason}); convert the dense folder again")
