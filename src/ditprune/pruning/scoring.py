"""How are the weights of a target scored, with the statistics that the methods need?"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ditprune.checkpoints.statistics_file import Statistics
from ditprune.errors import RecipeError, TargetError
from ditprune.method.magnitudes import Cutoffs, bits_of
from ditprune.method.recipe import Recipe
from ditprune.method.reconstruction import Reconstruction
from ditprune.method.saliency import Saliency
from ditprune.method.statistics.column_norm import ColumnNorm, timestep_weights
from ditprune.method.thresholds import Threshold
from ditprune.targets.discover import Target

Array = np.ndarray[Any, Any]

_CHUNK_WEIGHTS = 1 << 19  # scores of 2 MiB


def can_score(recipe: Recipe, stats: object | None) -> bool:
    """Whether the recipe's methods have the statistics that they need."""
    needs = recipe.saliency.needs | recipe.reconstruction.needs
    return stats is not None or ColumnNorm not in needs


@dataclass(frozen=True)
class Computed:
    """Scores that are computed as often as they are wanted, so that they take no memory."""

    saliency: Saliency
    weight: Tensor
    norms: Mapping[str, Tensor]

    @classmethod
    def of(
        cls, target: Target, weight: Tensor, stats: Statistics | None, recipe: Recipe
    ) -> Computed | None:
        """None where the saliency does not allow it, and for a weight on a GPU."""
        if weight.device.type != "cpu" or not getattr(recipe.saliency, "is_rowwise", False):
            return None
        norms = norms_for(recipe.saliency, target.name, stats, recipe)
        return cls(recipe.saliency, weight, norms)

    def rows(self, rows: slice) -> Tensor:
        return self.saliency(self.weight[rows], **self.norms)

    def at(self, row: Array, column: Array) -> Tensor:
        """Of single weights, as if the weights were a row of their own."""
        bits = bits_of(self.weight).numpy()[row, column]  # torch takes three times as long
        norms = {name: norm[torch.from_numpy(column)] for name, norm in self.norms.items()}
        weight = torch.from_numpy(bits).view(self.weight.dtype)
        return self.saliency(weight[None], **norms)[0]

    def keep_of(self, threshold: Threshold) -> Callable[[slice], Tensor]:
        """The mask of some rows, where all weights are one group."""
        weight, num_in = self.weight, self.weight.shape[1]
        is_monotone = getattr(self.saliency, "is_monotone", False)
        if is_monotone and weight.dtype != torch.float64:  # whose powers may err in the last bit
            score = partial(self.saliency, **self.norms)
            cutoffs = Cutoffs.of(threshold, score, weight.dtype, num_in)
            return lambda rows: cutoffs.keep(weight[rows], rows.start * num_in)
        return lambda rows: threshold.keep(self.rows(rows), rows.start * num_in)

    def are_told_apart(self, rows: slice, scores: Tensor) -> bool:
        """Whether their dtype holds these rows' scores, and the sum of all if others are no larger,
        and rounds none to 0.
        """
        limits = torch.finfo(scores.dtype)
        lowest, highest = (end.item() for end in scores.aminmax())
        if not highest * self.weight.numel() <= limits.max or lowest < -limits.max:  # NaN too
            return False
        if lowest >= limits.tiny or not getattr(self.saliency, "is_product", False):
            return True
        counts = self.weight[rows] != 0  # no factor of the score is zero
        for norm in self.norms.values():
            counts &= norm.to(counts.device) != 0
        return not ((scores < limits.tiny) & counts).any()


def scores_of(target: Target, weight: Tensor, stats: Statistics | None, recipe: Recipe) -> Tensor:
    """The saliency of every weight of a target, [C_out, C_in]: float32, or float64 where float32
    would round scores to 0 or to Inf, so that their position would decide.

    Raises TargetError where a score is NaN or Inf, or where float64 does not hold them either.
    """
    saliency = recipe.saliency
    norms = norms_for(saliency, target.name, stats, recipe)
    computed = Computed(saliency, weight, norms)
    scores = _by_rows(computed)
    if _are_told_apart(computed, scores):
        return scores
    if not weight.isfinite().all():
        raise TargetError(
            f"{target.name}: its weight holds NaN or Inf; repair the model or exclude it"
        )
    if weight.device.type == "mps":  # has no float64
        raise TargetError(
            f"{target.name}: float32 does not hold its {saliency.name} scores; prune on the CPU"
        )
    exact = {name: norm.double() for name, norm in norms.items()}
    scores = _by_rows(Computed(saliency, weight.double(), exact)).double()
    if not _are_told_apart(computed, scores):
        raise TargetError(
            f"{target.name}: float64 does not hold its {saliency.name} scores; use smaller powers"
        )
    return scores


def _are_told_apart(computed: Computed, scores: Tensor) -> bool:
    """Whether the dtype holds all scores and their sum, and none was rounded to 0."""
    return all(computed.are_told_apart(rows, scores[rows]) for rows in row_chunks(computed.weight))


def row_chunks(weight: Tensor) -> Iterator[slice]:
    """Rows of a weight that fit a cache together."""
    step = max(1, _CHUNK_WEIGHTS // weight.shape[1])
    for first in range(0, weight.shape[0], step):
        yield slice(first, min(first + step, weight.shape[0]))


def norms_for(
    method: Saliency | Reconstruction, name: str, stats: Statistics | None, recipe: Recipe
) -> dict[str, Tensor]:
    """The argument `norm` of a method that needs the norms of this target's inputs, float32 [C_in].

    It is empty for a method that does not need them: `needs` decides what reaches a method.
    """
    if ColumnNorm not in method.needs or stats is None:
        return {}
    weights = timestep_weights(recipe.timestep_weighting, stats.num_bins)
    return {"norm": stats.column_norm(name, weights)}


def _by_rows(computed: Computed) -> Tensor:
    """The scores, where the saliency allows it a few rows at a time: what it makes on the way
    stays in the cache, and only the result takes memory.
    """
    saliency, weight = computed.saliency, computed.weight
    if weight.device.type != "cpu" or not getattr(saliency, "is_rowwise", False):
        return saliency(weight, **computed.norms)
    kind = np.float64 if weight.dtype == torch.float64 else np.float32
    scores = torch.from_numpy(np.empty(weight.shape, kind))  # numpy asks for huge pages
    for rows in row_chunks(weight):
        scores[rows] = computed.rows(rows)
    return scores


def check_scorable(recipe: Recipe, stats: object | None) -> None:
    """Refuse a saliency that needs statistics where there are none. Raises RecipeError."""
    if not can_score(recipe, stats):
        raise RecipeError(
            f"--saliency {recipe.saliency.name} needs the inputs of the layers and no statistics "
            "were given; run `ditprune calibrate` and pass --statistics, or use magnitude"
        )
