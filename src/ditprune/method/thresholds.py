"""From which score on does a layer's weight stay, where its scores pass by in pieces?

A sample of the scores gives a bracket around the k-th largest. One pass then counts what lies above
the bracket and remembers what lies in it; the k-th largest is among those. The answer is exact:
where the bracket missed, or holds too much to remember, there is none, and `masks.keep_best` has to
see all scores at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

Array = np.ndarray[Any, Any]

_NUM_DEVIATIONS = 4  # of the rank in a sample; wider than that one sample in 16,000 is
_LARGEST_SHARE = 8  # a bracket may hold this part of the scores


@dataclass(frozen=True)
class Threshold:
    """What stays of a group: scores above `value`, and those equal to it from a position on."""

    value: Any
    first_tie: int

    def keep(self, scores: Tensor, start: int) -> Tensor:
        """The mask of scores whose first one is at position `start` of the group."""
        flat = scores.reshape(-1).numpy()
        split = min(max(self.first_tie - start, 0), len(flat))
        keep = np.empty(len(flat), bool)
        np.greater(flat[:split], self.value, out=keep[:split])
        np.greater_equal(flat[split:], self.value, out=keep[split:])
        return torch.from_numpy(keep).reshape(scores.shape)


@dataclass(frozen=True)
class Part:
    """A piece of the scores: how many are above a bracket, and those in it with their positions."""

    num_above: int
    positions: Array
    scores: Array


@dataclass(frozen=True)
class Bracket:
    """Two scores with the k-th largest of a group between them, most likely."""

    low: Any
    high: Any

    @classmethod
    def around(cls, sample: Array, kept_share: float) -> Bracket:
        """Around the score that so many of a group exceed, from a random sample of it."""
        size = len(sample)
        middle = size * (1 - kept_share)
        reach = 1 + _NUM_DEVIATIONS * (size * kept_share * (1 - kept_share)) ** 0.5
        first, last = int(middle - reach), int(middle + reach)
        ends = [end for end in (first, last) if 0 <= end < size]
        sample = np.partition(sample, ends) if ends else sample
        low = sample[first] if first >= 0 else sample.dtype.type(-np.inf)
        high = sample[last] if last < size else sample.dtype.type(np.inf)
        return cls(low, high)

    def part(self, scores: Array, start: int) -> Part:
        """Of scores [n] whose first one is at position `start` of the group."""
        above = scores > self.high
        num_above = int(np.count_nonzero(above))
        inside = np.flatnonzero(np.bitwise_xor(scores >= self.low, above, out=above))
        return Part(num_above, inside + start, scores[inside])


class Search:
    """Looks for the threshold of one group of scores that pass by in order of position."""

    def __init__(self, size: int, num_keep: int) -> None:
        self._num_keep, self._most = num_keep, size // _LARGEST_SHARE
        self._parts: list[Part] = []
        self._num_inside, self._num_above = 0, 0

    def add(self, part: Part) -> None:
        self._num_above += part.num_above
        self._num_inside += len(part.scores)
        self._parts.append(part)
        if self._num_inside > self._most:
            self._parts.clear()

    def threshold(self) -> Threshold | None:
        """None where the bracket missed, or held too much."""
        order = self._num_keep - self._num_above  # among what lies in the bracket, from 1
        if self._num_inside > self._most or not 0 < order <= self._num_inside:
            return None
        scores = np.concatenate([part.scores for part in self._parts])
        rest = self._num_inside - order
        value = np.partition(scores, rest)[rest]
        num_missing = order - int(np.count_nonzero(scores > value))
        return Threshold(value, self._position_of_tie(value, num_missing))

    def _position_of_tie(self, value: Any, from_last: int) -> int:
        """Of the score that equals `value`, counted from the last one."""
        for part in reversed(self._parts):
            ties = part.positions[part.scores == value]
            if from_last <= len(ties):
                return int(ties[len(ties) - from_last])
            from_last -= len(ties)
        raise AssertionError("the threshold is one of the scores")
