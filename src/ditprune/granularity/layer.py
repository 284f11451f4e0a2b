"""All weights of a layer compete."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ditprune.granularity.share import Share


@dataclass(frozen=True)
class PerLayer(Share):
    """One group of C_out · C_in weights: `o i -> 1 (o i)`."""

    name: ClassVar[str] = "layer"

    def group_shape(self, num_out: int, num_in: int) -> tuple[int, int]:
        """(number of groups, weights in each) of a layer [num_out, num_in]."""
        return 1, num_out * num_in
