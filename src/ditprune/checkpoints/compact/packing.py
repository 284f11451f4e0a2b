"""A dense weight ⇄ a packed one, as bytes; what is dropped is +0.0 and nothing else.

A weight is looked at as integers, so signs of zero, NaN payloads and denormals come back bit for
bit. Everything goes in chunks that stay in the cache; places become indices on the way, which
numpy takes and puts four times faster than masks.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from ditprune.checkpoints.compact.groups import filled_bits, mask_of, most_in_group
from ditprune.checkpoints.compact.head import GROUPS, ITEM_BYTES, Head, read_head
from ditprune.errors import ModelError

CHUNK_WEIGHTS = 1 << 19  # whole bytes of masks and of positions
_NEARLY = 1.01  # a few zeros more than N:M asks for do not hide it
_WORDS: dict[int, np.dtype[Any]] = {8: np.dtype("<u8"), 4: np.dtype("<u4"), 2: np.dtype("<u2")}


def smallest(raw: memoryview, dtype: str, shape: tuple[int, ...]) -> Head:
    """The smallest form of a dense weight, whether it gains or not; N:M where nearly as small.

    Args:
        raw: its bytes.
        dtype: a key of ITEM_BYTES.
    """
    words = words_of(raw, dtype)
    bits = np.packbits(words != 0, bitorder="little")
    most = {size: most_in_group(bits, size) for size in {size for _, size in GROUPS}}
    heads = [
        Head(dtype, shape, len(words) // size * kept, (kept, size))
        for kept, size in GROUPS
        if len(words) % size == 0 and most[size] <= kept
    ]
    heads.append(Head(dtype, shape, int(np.bitwise_count(bits).sum(dtype=np.int64))))
    least = min(head.size_bytes for head in heads)
    return next(head for head in heads if head.size_bytes <= least * _NEARLY)


def pack(raw: memoryview, head: Head) -> memoryview:
    """The packed weight of a dense one, in the form that `smallest` chose for these bytes."""
    words = words_of(raw, head.dtype)
    packed = np.zeros(head.size_bytes, np.uint8)
    packed[: head.values_start] = np.frombuffer(head.to_bytes(), np.uint8)
    values, places = _parts(packed, head)
    num_values = num_places = 0
    for start in range(0, len(words), CHUNK_WEIGHTS):
        chunk = words[start : start + CHUNK_WEIGHTS]
        bits = np.packbits(chunk != 0, bitorder="little")
        if head.group is None:
            found, kept = bits, _indices(bits, len(chunk))
        else:
            bits, found = filled_bits(bits, head.group)
            kept = _indices(bits, len(chunk))
        places[num_places : num_places + len(found)] = found
        np.take(chunk, kept, out=values[num_values : num_values + len(kept)], mode="clip")
        num_values, num_places = num_values + len(kept), num_places + len(found)
    return packed.data


def unpack(raw: memoryview, name: str) -> tuple[Head, memoryview]:
    """The head and the dense bytes of a packed weight.

    Raises ModelError, with the name, for what is no packed weight: every size and every place is
    checked before it is used.
    """
    head = read_head(raw, name)
    values, places = _parts(np.frombuffer(raw, np.uint8), head)
    _check_places(head, places, name)
    dense = np.zeros(head.num_weights, values.dtype)
    num_values = 0
    for start, bits in _mask_chunks(head, places, name):
        chunk = dense[start : start + CHUNK_WEIGHTS]
        kept = _indices(bits, len(chunk))
        chunk[kept] = values[num_values : num_values + len(kept)]
        num_values += len(kept)
    return head, dense.view(np.uint8).data


def _mask_chunks(head: Head, places: np.ndarray, name: str) -> Iterator[tuple[int, np.ndarray]]:
    """(first weight, bits of the mask) for each chunk of weights."""
    for start in range(0, head.num_weights, CHUNK_WEIGHTS):
        count = min(CHUNK_WEIGHTS, head.num_weights - start)
        if head.group is None:
            yield start, places[start // 8 : -(-(start + count) // 8)]
            continue
        in_byte = 8 // GROUPS[head.group] * head.group[1] // head.group[0]  # weights
        bits = mask_of(places[start // in_byte : -(-(start + count) // in_byte)], head.group)
        if bits is None:
            raise _spoiled(name, f"positions that do not ascend within {head.form}")
        yield start, bits


def _check_places(head: Head, places: np.ndarray, name: str) -> None:
    """That a mask has as many bits as there are values, and none beyond the weights."""
    if head.group is not None:
        return
    num_bits = int(np.bitwise_count(places).sum(dtype=np.int64))
    if num_bits != head.num_values:
        raise _spoiled(name, f"{num_bits} bits in its mask, {head.num_values} values")
    if head.num_weights % 8 and places[-1] >> (head.num_weights % 8):
        raise _spoiled(name, "bits in its mask beyond the last weight")


def _indices(bits: np.ndarray, count: int) -> np.ndarray:
    """Where the first `count` bits are set."""
    return np.flatnonzero(np.unpackbits(bits, bitorder="little", count=count).view(np.bool_))


def words_of(raw: memoryview, dtype: str) -> np.ndarray:
    """The bytes of weights as one unsigned integer each, without a copy."""
    return np.frombuffer(raw, _WORDS[ITEM_BYTES[dtype]])


def _parts(packed: np.ndarray, head: Head) -> tuple[np.ndarray, np.ndarray]:
    """The values and the places of a packed weight, without what fills them up."""
    values = packed[head.values_start : head.values_start + head.value_bytes]
    places = packed[head.places_start : head.places_start + head.place_bytes]
    return values.view(_WORDS[ITEM_BYTES[head.dtype]]), places


def _spoiled(name: str, reason: str) -> ModelError:
    return ModelError(f"{name}: not a packed weight ({reason}); convert the dense folder again")
