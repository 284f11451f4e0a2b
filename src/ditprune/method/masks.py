"""Which weights of a group stay? The k with the best scores, exactly k, ties by position.

Among equal scores the later position stays, as if a stable sort put each group in ascending order
and the first entries were removed. The cost is linear in the number of scores.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ditprune.errors import TargetError
from ditprune.method.row_order import count_in_rows, kth_smallest

# G groups, K weights in each.
_SMALL_GROUP = 16  # up to here all pairs are compared, K² vector operations on [G]
CHUNK_WEIGHTS = 1 << 24  # weights compared together when there are many groups: 64 MiB


def keep_best(
    scores_GK: Float[Tensor, "groups weights"], num_keep: int
) -> Bool[Tensor, "groups weights"]:
    """The mask of weights that stay: True for exactly `num_keep` in each row of scores.

    Args:
        scores_GK: one row per group, higher is better; any device.
        num_keep: 0 … K.

    Raises:
        TargetError: a score is NaN.
    """
    num_groups, group_size = scores_GK.shape
    if not 0 <= num_keep <= group_size:
        raise ValueError(f"num_keep {num_keep} outside 0…{group_size}")
    if scores_GK.numel() and scores_GK.amax().isnan():
        count = int(scores_GK.isnan().sum())
        raise TargetError(
            f"{count} of {scores_GK.numel()} scores are NaN, expected numbers; "
            "look for NaN or Inf in the weights and in the statistics"
        )
    if num_keep in (0, group_size):
        return torch.full_like(scores_GK, num_keep > 0, dtype=torch.bool)
    select = _keep_by_pairs if group_size <= _SMALL_GROUP else _keep_by_threshold
    rows = max(1, CHUNK_WEIGHTS // group_size)
    if rows >= num_groups:
        return select(scores_GK, num_keep)
    keep_GK = torch.empty(scores_GK.shape, dtype=torch.bool, device=scores_GK.device)
    for first in range(0, num_groups, rows):
        keep_GK[first : first + rows] = select(scores_GK[first : first + rows], num_keep)
    return keep_GK


def _keep_by_pairs(scores_GK: Tensor, num_keep: int) -> Tensor:
    """Keep a weight if fewer than `num_keep` others in its group are better; later wins a tie."""
    scores_KG = scores_GK.T.contiguous()
    group_size = len(scores_KG)
    num_better_KG = torch.zeros(scores_KG.shape, dtype=torch.uint8, device=scores_KG.device)
    for a in range(group_size):
        for b in range(a + 1, group_size):
            a_is_better = scores_KG[a] > scores_KG[b]
            num_better_KG[b] += a_is_better
            num_better_KG[a] += a_is_better.logical_not_()
    return (num_better_KG < num_keep).T


def _keep_by_threshold(scores_GK: Tensor, num_keep: int) -> Tensor:
    """Keep scores from the k-th of each group on, without the first of those equal to it."""
    threshold_G1 = _smallest_of_order(scores_GK, scores_GK.shape[1] - num_keep + 1)
    keep_GK = _compare(operator.ge, scores_GK, threshold_G1)
    surplus_G = _count_in_rows(keep_GK) - num_keep
    tied_rows = surplus_G.nonzero()[:, 0]
    if len(tied_rows) == 0:
        return keep_GK
    if len(tied_rows) < len(scores_GK):  # picking rows copies them
        scores_GK, threshold_G1 = scores_GK[tied_rows], threshold_G1[tied_rows]
    flat = _positions(_compare(operator.eq, scores_GK, threshold_G1))
    row, column = flat // scores_GK.shape[1], flat % scores_GK.shape[1]
    # Ties come in order of position; the first `surplus` of each group go.
    num_ties = torch.bincount(row, minlength=len(tied_rows))
    rank = torch.arange(len(row), device=row.device) - (num_ties.cumsum(0) - num_ties)[row]
    goes = rank < surplus_G[tied_rows][row]
    keep_GK[tied_rows[row[goes]], column[goes]] = False
    return keep_GK


def _compare(by: Callable[[Any, Any], Any], scores_GK: Tensor, threshold_G1: Tensor) -> Tensor:
    """Compare each score with the threshold of its row; numpy on the CPU, for huge pages."""
    if scores_GK.device.type != "cpu":
        return by(scores_GK, threshold_G1)
    return torch.from_numpy(by(scores_GK.numpy(), threshold_G1.numpy()))


def _count_in_rows(mask_GK: Tensor) -> Tensor:
    """The number of True in each row; on the CPU numpy counts ten times faster than torch."""
    if mask_GK.device.type != "cpu":
        return torch.count_nonzero(mask_GK, dim=1)
    return torch.from_numpy(count_in_rows(mask_GK.numpy()))


def num_nonzero(values: Tensor) -> int:
    """Of integers or flags; on the CPU by numpy, as above."""
    if values.device.type != "cpu":
        return int(torch.count_nonzero(values))
    return int(np.count_nonzero(values.numpy()))


def _positions(mask_GK: Tensor) -> Tensor:
    """The flat indices of True entries, in order; on the CPU by numpy, as above."""
    if mask_GK.device.type != "cpu":
        return mask_GK.reshape(-1).nonzero()[:, 0]
    return torch.from_numpy(np.flatnonzero(mask_GK.numpy()))


def _smallest_of_order(scores_GK: Tensor, order: int) -> Tensor:
    """The `order`-th smallest score (from 1) of each group, [G, 1], in linear time.

    On the CPU numpy's vectorised operations are many times faster than `torch.kthvalue`.
    """
    if scores_GK.device.type != "cpu":
        return torch.kthvalue(scores_GK, order, dim=1, keepdim=True).values
    return torch.from_numpy(kth_smallest(scores_GK.numpy(), order))
