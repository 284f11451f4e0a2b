"""Clustering-aware granularity: per layer where channels are alike, per channel where not."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from ditprune.errors import RecipeError
from ditprune.granularity.channel import PerChannel
from ditprune.granularity.layer import PerLayer

# The paper leaves the threshold open; chosen by measured error in log/2026-11-22-cag-threshold.md.
DEFAULT_THRESHOLD = 0.1
# "auto" needs a gap: below this ratio between neighbouring values nothing is split.
_SMALLEST_GAP = 2.0


def heterogeneity(scores: Float[Tensor, "out in"]) -> float:
    """G_out = Var_i(Ī_i) / Mean_i(Ī_i)², with Ī_i the mean score of output channel i.

    Source: arXiv 2607.00927, Eqs. 9 and 10; the population variance. A layer whose scores are all
    zero has G_out 0.
    """
    mean_O = scores.mean(dim=1).cpu().double()
    centre = mean_O.mean()
    return (mean_O.var(correction=0) / centre.square()).item() if centre != 0 else 0.0


def automatic_threshold(g_out: Mapping[str, float]) -> float | None:
    """The middle of the largest gap in log G_out; None (all per layer) where there is none."""
    logs = sorted(math.log(g) for g in g_out.values() if g > 0)
    gap, middle = max(((b - a, (a + b) / 2) for a, b in pairwise(logs)), default=(0.0, 0.0))
    return math.exp(middle) if gap >= math.log(_SMALLEST_GAP) else None


@dataclass(frozen=True)
class CAG:
    """Chooses `layer` or `channel` for each target by its G_out.

    Args:
        cag_threshold: G_out at or above it goes per channel; "auto" splits the model's own
            targets at the largest gap in log G_out.
    """

    cag_threshold: float | str = DEFAULT_THRESHOLD
    name: ClassVar[str] = "cag"

    def __post_init__(self) -> None:
        given = self.cag_threshold
        is_number = isinstance(given, (int, float)) and not isinstance(given, bool)
        if not self.is_automatic and not (is_number and 0 <= float(given) < math.inf):
            raise RecipeError(f"--cag-threshold {given}: expected a number from 0 up, or 'auto'")

    @property
    def is_automatic(self) -> bool:
        return self.cag_threshold == "auto"

    def threshold(self, g_out: Mapping[str, float]) -> float | None:
        """The number to compare with; an automatic one follows from every target's G_out."""
        if self.is_automatic:
            return automatic_threshold(g_out)
        return float(self.cag_threshold)

    def choose(self, g_out: float, threshold: float | None) -> PerLayer | PerChannel:
        """The comparison group of one target; without a threshold all are per layer."""
        return PerChannel() if threshold is not None and g_out >= threshold else PerLayer()
