"""Which score is the k-th smallest of each row, where rows are long and not put in order?

A few scores of a row say about where it is. Questions of how many scores lie below a value then
find two values, for each row, with the k-th between them and little else; only that is partitioned,
in a third of the time that whole rows take. Rows where the questions did not close in are
partitioned whole. So the answer is exact.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

_NUM_SAMPLED = 96  # scores of each row
_RUN = 8  # of them side by side
_NUM_DEVIATIONS = 3  # of a rank in the sample
_NUM_ROUNDS = 3  # of three questions; most often the first is enough
_MARGIN = 3  # times the root of how many scores are near: six deviations at most
_LARGEST_SHARE = 16  # this part of a row may be left to partition
_FEW = 0.1  # of the rows, for which no other round is worth its time
_SHORTEST, _LONGEST = 1024, (1 << 16) - 1  # rows; 16 bits count no longer ones
_INTEGERS = {np.dtype(np.float32): np.int32, np.dtype(np.float64): np.int64}


def kth_smallest(scores_GK: Array, k: int) -> Array:
    """The k-th smallest score (from 1) of each row, [G, 1]."""
    row_size = scores_GK.shape[1]
    is_long = scores_GK.dtype in _INTEGERS and _SHORTEST <= row_size <= _LONGEST
    if not is_long or not scores_GK.min() >= 0:
        return _by_partition(scores_GK, k)
    ends = _Ends.of_all(scores_GK).closer(scores_GK, k, *_sampled(scores_GK, k))
    for _ in range(_NUM_ROUNDS):
        ends = ends.closer(scores_GK, k, ends.at(k - 0.5))
        ends = ends.closer(scores_GK, k, *ends.around(k))
        is_open_G = (ends.num_high - ends.num_low)[:, 0] > row_size // _LARGEST_SHARE
        if is_open_G.mean() < _FEW:
            break
    if is_open_G.all():
        return _by_partition(scores_GK, k)
    kth_G1 = _kth_inside(scores_GK, k, ends, ~is_open_G)
    if is_open_G.any():
        kth_G1[is_open_G] = _by_partition(scores_GK[is_open_G], k)
    return kth_G1


def count_in_rows(mask_GK: Array) -> Array:
    """The number of True in each row, [G]."""
    if mask_GK.shape[1] > _LONGEST:
        return np.count_nonzero(mask_GK, axis=1)
    return np.add.reduce(mask_GK.view(np.uint8), axis=1, dtype=np.uint16).astype(np.int64)


def _sampled(scores_GK: Array, k: int) -> tuple[Array, Array]:
    """Two scores with the k-th between them, most likely, from a few columns."""
    share = k / scores_GK.shape[1]
    reach = 1 + _NUM_DEVIATIONS * (_NUM_SAMPLED * share * (1 - share)) ** 0.5
    first = max(0, int(_NUM_SAMPLED * share - reach))
    last = min(_NUM_SAMPLED - 1, int(_NUM_SAMPLED * share + reach))
    sample = scores_GK.take(_columns(scores_GK.shape[1]), axis=1)
    sample.sort(axis=1)  # so few are put in order sooner than divided
    return sample[:, first, None], sample[:, last, None]


@cache
def _columns(row_size: int) -> Array:
    """Runs at random places, the same each time; a run lies in one or two lines of the cache."""
    draw = np.random.Generator(np.random.PCG64(0))
    begins = draw.integers(0, row_size - _RUN, _NUM_SAMPLED // _RUN)
    return np.add.outer(begins, np.arange(_RUN)).reshape(-1)


@dataclass(frozen=True)
class _Ends:
    """Two values for each row, with the k-th score from the low one on and below the high one.

    All are [G, 1].

    Args:
        num_low: of the row's scores, how many are below `low`.
    """

    low: Array
    num_low: Array
    high: Array
    num_high: Array

    @classmethod
    def of_all(cls, scores_GK: Array) -> _Ends:
        """Around all scores, which are not negative."""
        low, num_low = np.zeros((len(scores_GK), 1), scores_GK.dtype), np.zeros((1, 1), np.int64)
        return cls(low, num_low, np.full_like(low, np.inf), num_low + scores_GK.shape[1])

    def closer(self, scores_GK: Array, k: int, *values: Array) -> _Ends:
        """Each of these values is an end where it is closer to the k-th score."""
        low, num_low, high, num_high = self.low, self.num_low, self.high, self.num_high
        for value in values:
            num_below = count_in_rows(scores_GK < value)[:, None]
            is_low = (num_low <= num_below) & (num_below < k)
            is_high = (k <= num_below) & (num_below <= num_high)
            low, num_low = np.where(is_low, value, low), np.where(is_low, num_below, num_low)
            high, num_high = np.where(is_high, value, high), np.where(is_high, num_below, num_high)
        return _Ends(low, num_low, high, num_high)

    def around(self, k: int) -> tuple[Array, Array]:
        """Two values with the k-th score between them, most likely, and few others."""
        margin = 4 + _MARGIN * np.sqrt(np.minimum(k - self.num_low, self.num_high - k))
        return self.at(k - margin), self.at(k + margin)

    def at(self, num_below: Any) -> Array:
        """The value that so many scores are below, if they lie evenly on a scale of logarithms.

        The bits of a positive float are such a scale, as an integer.
        """
        bits = _INTEGERS[self.low.dtype]
        low, high = self.low.view(bits).astype(np.float64), self.high.view(bits).astype(np.float64)
        share = (num_below - self.num_low) / (self.num_high - self.num_low)
        return (low + (high - low) * share.clip(0, 1)).astype(bits).view(self.low.dtype)


def _kth_inside(scores_GK: Array, k: int, ends: _Ends, is_closed_G: Array) -> Array:
    """The k-th smallest score of each row, found among those between the ends, [G, 1].

    That of a row that is not closed is any number.
    """
    high_G1 = np.where(is_closed_G[:, None], ends.high, ends.low)
    places = np.flatnonzero((scores_GK >= ends.low) & (scores_GK < high_G1))
    num_inside_G = (ends.num_high - ends.num_low)[:, 0] * is_closed_G
    order_G = (k - ends.num_low)[:, 0] * is_closed_G
    # Each row gets so many of -Inf before it that all orders are the same, and +Inf behind it.
    order = int(order_G.max())
    width = order + int((num_inside_G - order_G).max())
    padded_GW = np.full((len(order_G), width), np.inf, scores_GK.dtype)
    padded_GW[:, :order] = -np.inf
    begins_G = np.arange(len(order_G)) * width + order - order_G
    shifts_G = begins_G - (num_inside_G.cumsum() - num_inside_G)
    padded_GW.reshape(-1)[np.arange(len(places)) + shifts_G.repeat(num_inside_G)] = (
        scores_GK.reshape(-1)[places]
    )
    return _by_partition(padded_GW, order)


def _by_partition(scores_GK: Array, k: int) -> Array:
    return np.partition(scores_GK, k - 1, axis=1)[:, k - 1 : k].copy()
