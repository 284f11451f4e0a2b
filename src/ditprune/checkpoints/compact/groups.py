"""N:M: the positions of each group's N values ⇄ a mask of the groups, byte by byte from tables.

A group with fewer than N nonzeros keeps its first zeros as well, so every group has N. A byte of
a mask holds 8 / M groups, whose positions take 4 or 8 bits; so tables of 256 entries do it all.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np

from ditprune.checkpoints.compact.head import GROUPS


class _Tables(NamedTuple):
    """By byte of a mask: with N bits in each group; the positions of those bits.

    By byte of positions: the mask they make, and whether they ascend within their groups.
    """

    filled: np.ndarray
    positions: np.ndarray
    mask: np.ndarray
    is_valid: np.ndarray


def most_in_group(bits: np.ndarray, size: int) -> int:
    """The most bits of a mask that are set in one group of `size`, a divisor of 8.

    Args:
        bits: uint8, first weight lowest.
    """
    low = (1 << size) - 1
    counts = np.array(
        [max((byte >> s & low).bit_count() for s in range(0, 8, size)) for byte in range(256)],
        np.uint8,
    )
    return int(counts[bits].max(initial=0))


def filled_bits(bits: np.ndarray, group: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """The mask with N bits in each group, and the positions of those bits, both uint8.

    No group of the mask may have more than N bits; what fills its last byte becomes groups too.
    """
    tables = _tables(*group)
    positions = tables.positions[bits]
    if _bits_of_byte(*group) == 4:
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


def _bits_of_byte(kept: int, size: int) -> int:
    """How many bits the positions of one byte of a mask take."""
    return 8 // size * kept * GROUPS[kept, size]


@functools.cache
def _tables(kept: int, size: int) -> _Tables:
    filled = np.zeros(256, np.uint8)
    positions = np.zeros(256, np.uint8)
    for byte in range(256):
        groups = [_filled(byte >> s & (1 << size) - 1, kept, size) for s in range(0, 8, size)]
        filled[byte] = _joined(groups, size)
        numbers = [p for one in groups for p in range(size) if one >> p & 1][: 8 // size * kept]
        positions[byte] = _joined(numbers, GROUPS[kept, size]) & 0xFF
    width = kept * GROUPS[kept, size]
    masks = [
        [_mask_of_group(byte >> s & (1 << width) - 1, kept, size) for s in range(0, 8, width)]
        for byte in range(256)
    ]
    dtype = "<u2" if _bits_of_byte(kept, size) == 4 else np.uint8
    return _Tables(
        filled,
        positions,
        np.array([_joined([one or 0 for one in groups], size) for groups in masks], dtype),
        np.array([None not in groups for groups in masks]),
    )


def _filled(code: int, kept: int, size: int) -> int:
    """A group's mask with its lowest zeros set until N bits are."""
    for place in range(size):
        if code.bit_count() < kept:
            code |= 1 << place
    return code


def _mask_of_group(packed: int, kept: int, size: int) -> int | None:
    """The mask of one group's packed positions; None where they do not ascend within it."""
    width = GROUPS[kept, size]
    places = [packed >> width * i & (1 << width) - 1 for i in range(kept)]
    if places != sorted(set(places)) or places[-1] >= size:
        return None
    return sum(1 << place for place in places)


def _joined(numbers: list[int], width: int) -> int:
    """Numbers of `width` bits in one, first lowest."""
    return sum(number << width * i for i, number in enumerate(numbers))
