"""How is one weight pruned in place, where what stays is not updated?"""

from __future__ import annotations

import torch
from torch import Tensor

from ditprune.checkpoints.statistics_file import Statistics
from ditprune.method.granularity import heterogeneity
from ditprune.method.masks import keep_best
from ditprune.method.recipe import Recipe
from ditprune.pruning.job import TargetOutcome
from ditprune.pruning.scoring import row_chunks, scores_of
from ditprune.targets.discover import Target

# A float as the integer of its bytes: times 0 or 1 it becomes 0 or keeps every bit.
_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@torch.no_grad()
def prune_weight_(
    target: Target, weight: Tensor, stats: Statistics | None, recipe: Recipe,
    share: float | None = None,
) -> TargetOutcome:  # fmt: skip
    """Zero the least important entries of one weight [C_out, C_in], in place.

    Args:
        share: that an allocation gives this target; None for the recipe's own.
    """
    scores = scores_of(target, weight, stats, recipe)
    g_out = heterogeneity(scores)
    groups = recipe.groups(g_out)
    num_groups, group_size = groups.group_shape(*target.shape)
    sparsity = recipe.sparsity if share is None else share
    num_keep = groups.num_keep(group_size, sparsity)
    keep = keep_best(scores.reshape(num_groups, group_size), num_keep).reshape(weight.shape)
    del scores  # the largest tensor in memory
    num_zero = 0
    for rows in row_chunks(weight):
        weight[rows].view(_BITS[weight.element_size()]).mul_(keep[rows])
        num_zero += int(torch.count_nonzero(weight[rows] == 0))
    return TargetOutcome.of(target, groups, sparsity, g_out, keep, num_zero, sparsity=share)
