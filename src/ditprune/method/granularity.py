"""WHO COMPETES: into which groups [G, K] are a layer's scores [C_out, C_in] divided?

`masks.py` then keeps the k best of each group, whatever the groups are.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from typing import Any, ClassVar

from jaxtyping import Float
from torch import Tensor

from ditprune.errors import RecipeError


class Share:
    """Groups whose number of kept weights follows from the sparsity."""

    def num_keep(self, group_size: int, sparsity: float | None) -> int:
        """How many weights of a group stay: all but round(sparsity · group_size)."""
        assert sparsity is not None
        return group_size - round(sparsity * group_size)


@dataclass(frozen=True)
class PerLayer(Share):
    """One group of C_out · C_in weights: `o i -> 1 (o i)`."""

    name: ClassVar[str] = "layer"

    def group_shape(self, num_out: int, num_in: int) -> tuple[int, int]:
        """(number of groups, weights in each) of a layer [num_out, num_in]."""
        return 1, num_out * num_in


@dataclass(frozen=True)
class PerChannel(Share):
    """C_out groups of C_in weights: `o i -> o i`. Wanda's comparison group."""

    name: ClassVar[str] = "channel"

    def group_shape(self, num_out: int, num_in: int) -> tuple[int, int]:
        """(number of groups, weights in each) of a layer [num_out, num_in]."""
        return num_out, num_in


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
        """How many weights of a group stay; the pattern fixes it."""
        return self.keep


# The paper leaves the threshold open; chosen by measured error in log/2026-11-22-cag-threshold.md.
DEFAULT_THRESHOLD = 0.1


def heterogeneity(scores: Float[Tensor, "out in"]) -> float:
    """G_out = Var_i(Ī_i) / Mean_i(Ī_i)², with Ī_i the mean score of output channel i.

    Source: arXiv 2607.00927, Eqs. 9 and 10; the population variance. A layer whose scores are all
    zero has G_out 0.
    """
    return heterogeneity_of_means(scores.mean(dim=1))


def heterogeneity_of_means(mean_O: Float[Tensor, " out"]) -> float:
    """G_out from the mean score of each output channel."""
    mean_O = mean_O.cpu().double()
    centre = mean_O.mean()
    return (mean_O.var(correction=0) / centre.square()).item() if centre != 0 else 0.0


@dataclass(frozen=True)
class CAG:
    """Chooses `layer` or `channel` for each target by its G_out.

    Args:
        cag_threshold: a target whose G_out is at least this is compared per channel.
    """

    cag_threshold: float = DEFAULT_THRESHOLD
    name: ClassVar[str] = "cag"

    def __post_init__(self) -> None:
        check_threshold(self.cag_threshold)

    def choose(self, g_out: float) -> PerLayer | PerChannel:
        """The comparison groups of one target."""
        return PerChannel() if g_out >= self.cag_threshold else PerLayer()


def check_threshold(given: Any) -> None:
    """Raises RecipeError for a threshold that is no finite number from 0 up."""
    is_number = isinstance(given, (int, float)) and not isinstance(given, bool)
    if not (is_number and 0 <= given <= sys.float_info.max):
        raise RecipeError(f"--cag-threshold {given}: expected a number from 0 up")


GRANULARITIES: dict[str, Any] = {"layer": PerLayer, "channel": PerChannel, "cag": CAG}
