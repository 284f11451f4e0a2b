"""How are the positions of N:M groups turned into a mask and back? Byte by byte, from tables.

A group with fewer than N nonzeros also keeps its first zeros, so that every group has N. A byte of
a mask holds 8 / M groups, whose positions take 4 or 8 bits, so tables of 256 entries are enough.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np

from ditprune.checkpoints.compact.head import GROUPS


class _Tables(NamedTuple):
    """Indexed by a byte of a mask: the byte with N bits in each group; the positions of those bits.

    Indexed by a byte of positions: the mask that they make; whether they ascend in each group.
    """

    filled: np.ndarray
    positions: np.ndarray
    mask: np.ndarray
    is_valid: np.ndarray


def most_in_group(bits: np.ndarray, size: int) -> int:
    """The largest number of set bits in any group of a mask.

    Args:
        bits: uint8, first weight lowest.
        size: of a group; a divisor of 8.
    """
    counts = _bits_of_bytes(size).sum(2, dtype=np.uint8).max(1)
    return int(counts[bits].max(initial=0))


def filled_bits(bits: np.ndarray, group: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """The mask with N bits in each group, and the positions of those bits, both uint8.

    No group of the mask may have more than N bits; the padding of its last byte becomes groups too.
    """
    tables = _tables(*group)
    positions = tables.positions[bits]
    if _is_half_byte(*group):
        if len(positions) % 2:
            positions = np.append(positions, np.uint8(0))
        positions = positions[0::2] | positions[1::2] << 4
    return tables.filled[bits], positions


def mask_of(positions: np.ndarray, group: tuple[int, int]) -> np.ndarray | None:
    """The mask that `filled_bits` made; None where positions do not ascend within a group."""
    tables = _tables(*group)
    if not tables.is_valid[positions].all():
        return None
    return tables.mask[positions].view(np.uint8)


def _is_half_byte(num_keep: int, size: int) -> bool:
    """Whether the positions of one byte of a mask take 4 bits, and not 8."""
    return 8 // size * num_keep * GROUPS[num_keep, size] == 4


def _bits_of_bytes(size: int) -> np.ndarray:
    """The bits of every byte in groups, [256, 8 / size, size], first weight first."""
    every_byte = np.arange(256, dtype=np.uint8)[:, None]
    return np.unpackbits(every_byte, axis=1, bitorder="little").reshape(256, -1, size)


@functools.cache
def _tables(num_keep: int, size: int) -> _Tables:
    # A stable sort puts set bits before zeros, and lower positions before higher ones.
    order = np.argsort(1 - _bits_of_bytes(size), axis=2, kind="stable")
    chosen = np.sort(order[:, :, :num_keep], axis=2)
    width = GROUPS[num_keep, size]
    shifts = width * np.arange(8 // width)
    positions = (chosen.reshape(256, -1) << shifts[: 8 // size * num_keep]).sum(1).astype(np.uint8)
    groups = (np.arange(256)[:, None] >> shifts & (1 << width) - 1).reshape(256, -1, num_keep)
    is_valid = np.all(np.diff(groups) > 0, axis=(1, 2)) & np.all(groups < size, axis=(1, 2))
    mask = _as_bytes(groups, size)
    return _Tables(
        filled=_as_bytes(chosen, size)[:, 0],
        positions=positions,
        mask=mask.view("<u2")[:, 0] if _is_half_byte(num_keep, size) else mask[:, 0],
        is_valid=is_valid,
    )


def _as_bytes(positions: np.ndarray, size: int) -> np.ndarray:
    """The mask bytes in which these bits are set, from positions [256, groups, N]."""
    is_set = (positions[..., None] == np.arange(size)).any(2)
    return np.packbits(is_set.reshape(256, -1), axis=1, bitorder="little")
