"""How does a dense weight become a packed one, and back? Only +0.0 is dropped.

Weights are compared as integers, so signs of zero, NaN payloads and denormals come back unchanged.
The work is done in chunks that stay in the cache. Masks become indices on the way, because numpy's
take and put are four times faster with indices than with masks.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from ditprune.checkpoints.compact.groups import filled_bits, mask_of, most_in_group
from ditprune.checkpoints.compact.head import GROUPS, ITEM_BYTES, Head, not_packed, read_head

CHUNK_WEIGHTS = 1 << 19  # fills whole bytes of masks and of positions
_NEARLY = 1.01  # N:M is chosen although a few more zeros make a mask slightly smaller
_WORDS: dict[int, np.dtype[Any]] = {8: np.dtype("<u8"), 4: np.dtype("<u4"), 2: np.dtype("<u2")}


def smallest(raw: memoryview, dtype: str, shape: tuple[int, ...]) -> Head:
    """The head of the smallest form of a dense weight; N:M is preferred if it is nearly as small.

    The form may be larger than the dense weight.

    Args:
        raw: the bytes of the weight.
        dtype: a key of ITEM_BYTES.
    """
    words = words_of(raw, dtype)
    bits = np.packbits(words != 0, bitorder="little")
    most = {size: most_in_group(bits, size) for size in {size for _, size in GROUPS}}
    heads = [
        Head(dtype, shape, len(words) // size * num_keep, (num_keep, size))
        for num_keep, size in GROUPS
        if len(words) % size == 0 and most[size] <= num_keep
    ]
    heads.append(Head(dtype, shape, num_set(bits)))
    least = min(head.size_bytes for head in heads)
    return next(head for head in heads if head.size_bytes <= least * _NEARLY)


def pack_weight(raw: memoryview, head: Head) -> memoryview:
    """The packed weight of a dense one, in the form that `smallest` chose for these bytes."""
    words = words_of(raw, head.dtype)
    packed = np.zeros(head.size_bytes, np.uint8)
    packed[: head.values_start] = np.frombuffer(head.to_bytes(), np.uint8)
    values, positions = _parts(packed, head)
    num_values = num_bytes = 0
    for start in range(0, len(words), CHUNK_WEIGHTS):
        chunk = words[start : start + CHUNK_WEIGHTS]
        bits = np.packbits(chunk != 0, bitorder="little")
        bits, stored = (bits, bits) if head.group is None else filled_bits(bits, head.group)
        indices = _indices(bits, len(chunk))
        positions[num_bytes : num_bytes + len(stored)] = stored
        np.take(chunk, indices, out=values[num_values : num_values + len(indices)], mode="clip")
        num_values, num_bytes = num_values + len(indices), num_bytes + len(stored)
    return packed.data


def unpack_weight(raw: memoryview, name: str) -> tuple[Head, memoryview]:
    """The head and the dense bytes of a packed weight.

    Raises ModelError, with the name, for anything that is not a packed weight. Every size and
    every position is checked before it is used.
    """
    head = read_head(raw, name)
    values, positions = _parts(np.frombuffer(raw, np.uint8), head)
    if head.group is None:
        num_bits = num_set(positions)
        if num_bits != head.num_values:
            raise not_packed(name, f"{num_bits} bits in its mask, {head.num_values} values")
        if head.num_weights % 8 and positions[-1] >> (head.num_weights % 8):
            raise not_packed(name, "bits in its mask beyond the last weight")
    dense = np.zeros(head.num_weights, values.dtype)
    num_values = 0
    for start, bits in _mask_chunks(head, positions, name):
        chunk = dense[start : start + CHUNK_WEIGHTS]
        indices = _indices(bits, len(chunk))
        chunk[indices] = values[num_values : num_values + len(indices)]
        num_values += len(indices)
    return head, dense.view(np.uint8).data


def _mask_chunks(head: Head, positions: np.ndarray, name: str) -> Iterator[tuple[int, np.ndarray]]:
    """(first weight, bits of the mask) for each chunk of weights."""
    for start in range(0, head.num_weights, CHUNK_WEIGHTS):
        count = min(CHUNK_WEIGHTS, head.num_weights - start)
        if head.group is None:
            yield start, positions[start // 8 : -(-(start + count) // 8)]
            continue
        in_byte = 8 // GROUPS[head.group] * head.group[1] // head.group[0]  # weights
        bits = mask_of(positions[start // in_byte : -(-(start + count) // in_byte)], head.group)
        if bits is None:
            raise not_packed(name, f"positions that do not ascend within {head.form}")
        yield start, bits


def _indices(bits: np.ndarray, count: int) -> np.ndarray:
    """Where the first `count` bits are set."""
    return np.flatnonzero(np.unpackbits(bits, bitorder="little", count=count).view(np.bool_))


def num_set(bits: np.ndarray) -> int:
    """How many bits of a mask are set."""
    return int(np.bitwise_count(bits).sum(dtype=np.int64))


def words_of(raw: memoryview, dtype: str) -> np.ndarray:
    """The bytes of weights as one unsigned integer each, without a copy."""
    return np.frombuffer(raw, _WORDS[ITEM_BYTES[dtype]])


def _parts(packed: np.ndarray, head: Head) -> tuple[np.ndarray, np.ndarray]:
    """The values and the positions of a packed weight, without their padding."""
    values = packed[head.values_start : head.values_start + head.value_bytes]
    positions = packed[head.positions_start : head.positions_start + head.position_bytes]
    return values.view(_WORDS[ITEM_BYTES[head.dtype]]), positions
