"""The weights of each output channel compete among themselves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ditprune.granularity.share import Share


@dataclass(frozen=True)
class PerChannel(Share):
    """C_out groups of C_in weights: `o i -> o i`. Wanda's comparison group."""

    name: ClassVar[str] = "channel"

    def group_shape(self, num_out: int, num_in: int) -> tuple[int, int]:
        """(number of groups, weights in each) of a layer [num_out, num_in]."""
        return num_out, num_in
