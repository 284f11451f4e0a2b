"""The scores of one target, in as little memory as its saliency allows."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from ditprune.errors import TargetError
from ditprune.method.recipe import Recipe
from ditprune.method.saliency import Saliency
from ditprune.method.statistics.collected import Statistics
from ditprune.method.statistics.weighting import weights
from ditprune.targets.discover import Target

_CHUNK_WEIGHTS = 1 << 20  # scores of 4 MiB


def can_score(recipe: Recipe, stats: object | None) -> bool:
    """Whether the recipe's saliency has what it needs."""
    return stats is not None or not recipe.saliency.needs


def scores_of(target: Target, weight: Tensor, stats: Statistics | None, recipe: Recipe) -> Tensor:
    """The saliency of every weight of a target, float32 [C_out, C_in].

    Raises TargetError where a score is NaN or Inf.
    """
    norm = None
    if stats is not None and recipe.saliency.needs:
        norm = stats.column_norm(target.name, weights(recipe.timestep_weighting, stats.num_bins))
    scores = _by_rows(recipe.saliency, weight, norm)
    if not scores.amax().isfinite():
        if weight.isfinite().all():
            reason = f"its {recipe.saliency.name} scores exceed float32; use smaller powers"
        else:
            reason = "its weight holds NaN or Inf; repair the model or exclude it"
        raise TargetError(f"{target.name}: {reason}")
    return scores


def row_chunks(weight: Tensor) -> Iterator[slice]:
    """Rows of a weight that fit a cache together."""
    step = max(1, _CHUNK_WEIGHTS // weight.shape[1])
    yield from (slice(first, first + step) for first in range(0, weight.shape[0], step))


def _by_rows(saliency: Saliency, weight: Tensor, norm: Tensor | None) -> Tensor:
    """The scores, where the saliency allows it a few rows at a time: what it makes on the way
    stays in the cache, and only the result takes memory.
    """
    if weight.device.type != "cpu" or not getattr(saliency, "is_rowwise", False):
        return saliency(weight, norm)
    scores = torch.from_numpy(np.empty(weight.shape, np.float32))  # numpy asks for huge pages
    for rows in row_chunks(weight):
        scores[rows] = saliency(weight[rows], norm)
    return scores
