"""How is one weight pruned in place, where what stays is not updated?"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ditprune.checkpoints.statistics_file import Statistics
from ditprune.method.granularity import CAG, PerLayer, heterogeneity
from ditprune.method.magnitudes import bits_of, without_sign
from ditprune.method.masks import keep_best, num_nonzero
from ditprune.method.recipe import Recipe
from ditprune.pruning.job import TargetOutcome
from ditprune.pruning.scoring import Computed, row_chunks, scores_of
from ditprune.pruning.survey import side_by_side, survey
from ditprune.targets.discover import Target

KeepOf = Callable[[slice], Tensor]  # the mask of some rows


@torch.no_grad()
def prune_weight_(
    target: Target, weight: Tensor, stats: Statistics | None, recipe: Recipe,
    share: float | None = None,
) -> TargetOutcome:  # fmt: skip
    """Zero the least important entries of one weight [C_out, C_in], in place.

    Args:
        share: that an allocation gives this target; None for the recipe's own.
    """
    sparsity = recipe.sparsity if share is None else share
    computed = Computed.of(target, weight, stats, recipe)
    chosen = None if computed is None else _choose_by_rows(computed, recipe, sparsity)
    if chosen is None:
        scores = scores_of(target, weight, stats, recipe)
        chosen = _choose(scores, recipe, sparsity)
        del scores  # the largest tensor in memory
    g_out, keep_of = chosen

    def zero_(rows: slice) -> tuple[int, int]:
        return _zero_(weight[rows], keep_of(rows))

    counts = side_by_side(zero_, row_chunks(weight))
    num_kept, num_left = (sum(count) for count in zip(*counts, strict=True))
    num_pruned, num_zero = weight.numel() - num_kept, weight.numel() - num_left
    groups = recipe.groups(g_out)
    return TargetOutcome.of(target, groups, sparsity, g_out, num_pruned, num_zero, sparsity=share)


def _choose(scores: Tensor, recipe: Recipe, sparsity: float | None) -> tuple[float, KeepOf]:
    """G_out and the mask, from all scores at once."""
    g_out = heterogeneity(scores)
    groups = recipe.groups(g_out)
    num_groups, group_size = groups.group_shape(*scores.shape)
    num_keep = groups.num_keep(group_size, sparsity)
    keep = keep_best(scores.reshape(num_groups, group_size), num_keep).reshape(scores.shape)
    return g_out, keep.__getitem__


def _choose_by_rows(
    computed: Computed, recipe: Recipe, sparsity: float | None
) -> tuple[float, KeepOf] | None:
    """The same in two passes over the scores, which are not kept; None where that takes more."""
    num_out, num_in = computed.weight.shape
    num_keep = None
    if isinstance(recipe.granularity, (CAG, PerLayer)):
        num_keep = PerLayer().num_keep(num_out * num_in, sparsity)
    seen = survey(computed, num_keep)
    if seen is None:
        return None
    groups = recipe.groups(seen.g_out)
    _, group_size = groups.group_shape(num_out, num_in)
    threshold = seen.threshold
    if isinstance(groups, PerLayer) and threshold is not None:
        return seen.g_out, computed.keep_of(threshold)
    if num_in % group_size:
        return None
    num_keep = groups.num_keep(group_size, sparsity)
    return seen.g_out, lambda rows: keep_best(computed.rows(rows).reshape(-1, group_size), num_keep)


def _zero_(weight: Tensor, keep: Tensor) -> tuple[int, int]:
    """Zero what does not stay of some rows; how many stay, and how many are not zero then."""
    bits = bits_of(weight)
    bits.mul_(keep.reshape(weight.shape))
    return num_nonzero(keep), num_nonzero(without_sign(bits))
