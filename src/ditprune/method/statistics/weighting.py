"""How much each part of the way from noise to image counts in what is remembered."""

from __future__ import annotations

import math

from ditprune.errors import RecipeError, did_you_mean

# Source: OBS-Diff, arXiv 2510.06751: weights fall logarithmically from noise to image.
_FIRST, _LAST = 1.2, 0.8
TIMESTEP_WEIGHTINGS = ("uniform", "log-decrease", "log-increase")


def weights(name: str, num_bins: int) -> tuple[float, ...] | None:
    """The weight of each bin's squares, from noise to image; None where all are 1.

    Raises RecipeError for an unknown name.
    """
    if name not in TIMESTEP_WEIGHTINGS:
        raise RecipeError(
            f"--timestep-weighting '{name}': {did_you_mean(name, TIMESTEP_WEIGHTINGS)}"
        )
    if name == "uniform":
        return None
    span = math.log(num_bins) or 1.0
    falling = [_FIRST - (_FIRST - _LAST) * math.log(1 + i) / span for i in range(num_bins)]
    return tuple(falling if name == "log-decrease" else [2.0 - w for w in falling])
