"""Who competes and how many stay, for methods that choose the mask while they update."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Bool, Float32
from torch import Tensor

from ditprune.masks import keep_best


@dataclass(frozen=True)
class Choice:
    """Groups of consecutive weights, as a granularity's `group_shape` and `num_keep` give them.

    Args:
        group_size: weights in each group; the groups cover the layer row by row.
        num_keep: of each group.
    """

    group_size: int
    num_keep: int

    def __call__(
        self, scores: Float32[Tensor, "out in"], share: float = 1.0
    ) -> Bool[Tensor, "out in"]:
        """The mask by these scores; with a `share` below 1 only that share is removed as yet."""
        num_remove = round(share * (self.group_size - self.num_keep))
        groups = scores.reshape(-1, self.group_size)
        return keep_best(groups, self.group_size - num_remove).reshape(scores.shape)

    def splits_into(self, num_columns: int) -> bool:
        """Whether a run of so many columns, from a multiple of it, holds whole groups only."""
        return num_columns % self.group_size == 0
