"""N:M: of every M consecutive input weights of an output channel, N stay."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ditprune.errors import RecipeError


@dataclass(frozen=True)
class NM:
    """C_out · C_in / of groups of `of` weights, `keep` of them kept: `o (g m) -> (o g) m`."""

    keep: int
    of: int

    def __post_init__(self) -> None:
        if not 0 < self.keep < self.of:
            raise RecipeError(
                f"pattern: {self.keep}:{self.of} given; N:M keeps N of every M weights and needs "
                "0 < N < M, as in 2:4"
            )

    @classmethod
    def parse(cls, text: str) -> NM:
        """`"2:4"` → NM(keep=2, of=4)."""
        match = re.fullmatch(r"(\d{1,6}):(\d{1,6})", text.strip())
        if not match:
            raise RecipeError(f"pattern: '{text}' given; expected N:M with N of M kept, as in 2:4")
        return cls(int(match[1]), int(match[2]))

    @property
    def name(self) -> str:
        return f"{self.keep}:{self.of}"

    def group_shape(self, num_out: int, num_in: int) -> tuple[int, int]:
        """(number of groups, weights in each) of a layer [num_out, num_in]."""
        if num_in % self.of:
            raise RecipeError(
                f"{self.name} needs input channels divisible by {self.of}, got {num_in}"
            )
        return num_out * num_in // self.of, self.of

    def num_keep(self, group_size: int, sparsity: float | None) -> int:
        """How many weights of a group stay; the pattern alone says."""
        return self.keep
