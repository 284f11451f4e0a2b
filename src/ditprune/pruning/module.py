"""Score → group → keep, for one weight and for all of a loaded module."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from ditprune.calls import Call
from ditprune.errors import RecipeError
from ditprune.method.granularity import CAG, heterogeneity
from ditprune.method.masks import keep_best
from ditprune.method.recipe import Recipe, build
from ditprune.method.statistics.collected import Statistics
from ditprune.progress import Progress, silent
from ditprune.pruning.outcome import Outcome, TargetOutcome, outcome_of
from ditprune.pruning.plan import (
    Read,
    Selection,
    make_plan,
    measure_heterogeneity,
    read_module,
    select_in_module,
)
from ditprune.pruning.scores import can_score, row_chunks, scores_of
from ditprune.pruning.update.folder import write_update_
from ditprune.pruning.update.update import check_needs_calls, gram_limit, update_targets
from ditprune.targets.discover import Target

# A float as the integer of its bytes: times 0 or 1 it becomes 0 or keeps every bit.
_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def prune_(
    denoiser: nn.Module,
    stats: Statistics | None = None,
    sparsity: float | None = None,
    *,
    batches: Iterable[Any] | None = None,
    max_gram_bytes: int | None = None,
    progress: Progress = silent,
    recipe: Recipe | None = None,
    **words: Any,
) -> Outcome:
    """Prune a denoiser in place. The default is the paper's method at 50 %.

    Args:
        denoiser: any module with transformer blocks, on any device.
        stats: from `calibrate`; None where the saliency needs none (magnitude).
        sparsity: share of each comparison group to remove; 0.5 by default.
        batches: as for `calibrate`, where a recipe updates weights or measures budgets.
        max_gram_bytes: of memory for Grams, 4 GB by default; fewer bytes are more passes over
            the batches.
        progress: hears how far it is.
        recipe: what to do; excludes `sparsity` and `words`.
        words: the words of a recipe, as `saliency="wanda"`; see `Recipe`.

    Returns:
        What was done to each target.

    Raises:
        RecipeError, ModelError, TargetError, StatisticsError: before anything is changed.
    """
    recipe = build(recipe, sparsity=sparsity, **words)
    check_scorable(recipe, stats)
    if batches is not None:
        check_needs_calls(recipe, "batches")
    gram_limit(recipe, max_gram_bytes)
    selection = select_in_module(denoiser, recipe, stats)
    read = read_module(denoiser)
    # Scores everything once before anything changes, so that a refusal leaves the module whole.
    threshold = make_plan(selection, read, stats, recipe).cag_threshold
    if recipe.updates_weights:
        calls = [Call.of(batch) for batch in batches or ()]
        done = update_targets(
            denoiser, selection.targets, stats, recipe, threshold, calls, progress, max_gram_bytes
        )
        outcomes = {name: write_update_(read(one.layer.target), one) for name, one in done.items()}
        return outcome_of(selection, outcomes, recipe, threshold)
    outcomes = {
        name: prune_weight_(target, read(target), stats, recipe, threshold)
        for name, target in selection.targets.items()
    }
    return outcome_of(selection, outcomes, recipe, threshold)


def check_scorable(recipe: Recipe, stats: object | None) -> None:
    """Refuse a saliency that needs statistics where there are none. Raises RecipeError."""
    if not can_score(recipe, stats):
        raise RecipeError(
            f"--saliency {recipe.saliency.name} needs the inputs of the layers and no statistics "
            "were given; run `ditprune calibrate` and pass --statistics, or use magnitude"
        )


def resolve_threshold(
    selection: Selection, read: Read, stats: Statistics | None, recipe: Recipe
) -> float | None:
    """The number CAG compares with; an automatic one takes a pass over all weights first."""
    if not isinstance(recipe.granularity, CAG):
        return None
    automatic = recipe.granularity.is_automatic
    g_out = measure_heterogeneity(selection, read, stats, recipe) if automatic else {}
    return recipe.granularity.threshold(g_out)


@torch.no_grad()
def prune_weight_(
    target: Target,
    weight: Tensor,
    stats: Statistics | None,
    recipe: Recipe,
    threshold: float | None,
) -> TargetOutcome:
    """Zero the least important entries of one weight [C_out, C_in], in place."""
    scores = scores_of(target, weight, stats, recipe)
    g_out = heterogeneity(scores)
    groups = recipe.groups(g_out, threshold)
    num_groups, group_size = groups.group_shape(*target.shape)
    num_keep = groups.num_keep(group_size, recipe.sparsity)
    keep = keep_best(scores.reshape(num_groups, group_size), num_keep).reshape(weight.shape)
    del scores  # the largest thing in memory
    num_zero = 0
    for rows in row_chunks(weight):
        weight[rows].view(_BITS[weight.element_size()]).mul_(keep[rows])
        num_zero += int(torch.count_nonzero(weight[rows] == 0))
    return TargetOutcome.of(target, groups, recipe.sparsity, g_out, keep, num_zero)
