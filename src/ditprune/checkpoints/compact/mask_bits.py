"""Which weights are zero? A mask with one bit for each weight; -0.0 counts as zero here.

A mask is uint8, the first weight in the lowest bit, 1 where a weight is kept. The bits after the
last weight are 0.
"""

from __future__ import annotations

import zlib

import numpy as np

from ditprune.checkpoints.compact.head import ITEM_BYTES
from ditprune.checkpoints.compact.packing import CHUNK_WEIGHTS, words_of
from ditprune.errors import ModelError


def nonzero_bits(raw: memoryview, dtype: str) -> np.ndarray:
    """The mask of the weights that are not zero, from their bytes."""
    words = words_of(raw, dtype)
    without_sign = words.dtype.type((1 << 8 * ITEM_BYTES[dtype] - 1) - 1)
    bits = np.empty(-(-len(words) // 8), np.uint8)
    for start in range(0, len(words), CHUNK_WEIGHTS):
        chunk = words[start : start + CHUNK_WEIGHTS] & without_sign != 0
        packed = np.packbits(chunk, bitorder="little")
        bits[start // 8 : start // 8 + len(packed)] = packed
    return bits


def apply_(raw: memoryview, dtype: str, bits: np.ndarray) -> None:
    """Write +0.0 into the bytes of the weights where the mask is 0."""
    words = words_of(raw, dtype)
    for start in range(0, len(words), CHUNK_WEIGHTS):
        chunk = words[start : start + CHUNK_WEIGHTS]
        part = bits[start // 8 : -(-(start + len(chunk)) // 8)]
        chunk *= np.unpackbits(part, bitorder="little", count=len(chunk))


def compressed(bits: np.ndarray) -> bytes:
    """A mask, deflated where that makes it smaller.

    Deflate codes bytes and runs of them only: a random mask holds nothing else, and searching for
    repetitions takes ten times as long.
    """
    writer = zlib.compressobj(9, zlib.DEFLATED, zlib.MAX_WBITS, 9, zlib.Z_RLE)
    small = writer.compress(bits.data) + writer.flush()
    return small if len(small) < bits.nbytes else bits.tobytes()


def expanded(raw: memoryview, num_weights: int, name: str) -> np.ndarray:
    """The mask that `compressed` was given; never allocates more than the mask takes.

    Raises ModelError, with the name, for anything that `compressed` does not return.
    """
    num_bytes = -(-num_weights // 8)

    def spoiled(reason: str) -> ModelError:
        return ModelError(
            f"{name}: not the mask of its target ({reason}); extract it again with "
            "`ditprune mask extract`"
        )

    if raw.nbytes > num_bytes:
        raise spoiled(f"{raw.nbytes} bytes, expected at most {num_bytes}")
    content: bytes | memoryview = raw
    if raw.nbytes < num_bytes:
        reader = zlib.decompressobj()
        try:
            content = reader.decompress(raw, num_bytes + 1)
        except zlib.error as error:
            raise spoiled(str(error)) from None
        if len(content) != num_bytes or not reader.eof or reader.unused_data:
            raise spoiled(f"does not hold {num_bytes} bytes")
    bits = np.frombuffer(content, np.uint8)
    if num_weights % 8 and bits[-1] >> num_weights % 8:
        raise spoiled("bits beyond the last weight")
    return bits
