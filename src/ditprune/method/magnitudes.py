"""From which magnitude on does a weight stay, where its layer has one threshold for all scores?

The bits of a float without its sign, as an integer, are in the order of magnitudes. Where a score
never falls with the magnitude, each column has a first magnitude whose score reaches the threshold.
It is found by asking for the scores themselves. So comparing integers says, of every weight, what
comparing its score would say.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ditprune.method.thresholds import Threshold

Array = np.ndarray[Any, Any]

# By the bytes of a float, the integer with the same. Times 0 or 1 it becomes 0 or keeps every bit.
INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def bits_of(weight: Tensor) -> Tensor:
    """A weight's floats as integers: a view."""
    return weight.detach().view(INTEGERS[weight.element_size()])


def without_sign(bits: Tensor) -> Tensor:
    """The magnitudes of floats, in order as they are; that of -0.0 is 0."""
    return bits & torch.iinfo(bits.dtype).max


@dataclass(frozen=True)
class Cutoffs:
    """What stays of a layer, by the magnitudes of its weights.

    Args:
        reaching: [C_in], the first magnitude of a column whose score is at least the threshold.
        exceeding: [C_in], the first whose score is more.
        first_tie: position in the layer from which on scores equal to the threshold stay.
    """

    reaching: Array
    exceeding: Array
    first_tie: int

    @classmethod
    def of(
        cls, threshold: Threshold, scores_of: Callable[[Tensor], Tensor], dtype: torch.dtype,
        num_in: int,
    ) -> Cutoffs:  # fmt: skip
        """By halving the magnitudes again and again.

        Args:
            scores_of: a weight [rows, C_in] of this dtype → its scores.
        """
        largest = bits_of(torch.tensor(torch.finfo(dtype).max, dtype=dtype))
        low = np.zeros((2, num_in), np.int64)
        high = np.full_like(low, int(largest) + 1)  # which no score reaches
        while (low < high).any():
            middle = low + (high - low) // 2
            weight = torch.from_numpy(middle).to(largest.dtype).view(dtype)
            scores = scores_of(weight).numpy()
            is_less = np.stack((scores[0] < threshold.value, scores[1] <= threshold.value))
            reaches = ~is_less  # NaN, which is Inf · 0, is beyond all weights
            low = np.where(reaches, low, np.minimum(middle + 1, high))
            high = np.where(reaches, middle, high)
        reaching, exceeding = torch.from_numpy(high).to(largest.dtype).numpy()
        return cls(reaching, exceeding, threshold.first_tie)

    def keep(self, weight: Tensor, start: int) -> Tensor:
        """The mask of some rows; their first weight is at position `start` of the layer."""
        num_before = self.first_tie - start
        first: Array = self.reaching
        if num_before >= weight.numel():
            first = self.exceeding
        elif num_before > 0:
            is_before = np.arange(weight.numel()).reshape(weight.shape) < num_before
            first = np.where(is_before, self.exceeding, self.reaching)
        return torch.from_numpy(without_sign(bits_of(weight)).numpy() >= first)
