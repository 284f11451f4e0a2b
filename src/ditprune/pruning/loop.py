"""The loop that prunes: for each tensor read, score, group, keep, write.

`prune_` runs it over a loaded module, `prune_checkpoint` over the files of a folder.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ditprune.calls import Call
from ditprune.checkpoints.copy_folder import copy_other_files
from ditprune.checkpoints.locate import ModelFolder
from ditprune.checkpoints.rewrite_tensors import TensorRewriter, written_tensors
from ditprune.checkpoints.statistics_file import Statistics
from ditprune.checkpoints.weights import as_tensor, layout_of
from ditprune.errors import RecipeError
from ditprune.method.granularity import heterogeneity
from ditprune.method.masks import keep_best
from ditprune.method.recipe import Recipe
from ditprune.method.words import build
from ditprune.progress import Progress, silent
from ditprune.pruning.job import (
    Job,
    Outcome,
    TargetOutcome,
    claims,
    num_bytes,
    open_jobs,
    run_identity,
)
from ditprune.pruning.plan import (
    can_score,
    make_plan,
    read_module,
    row_chunks,
    scores_of,
    select_in_module,
)
from ditprune.pruning.update.folder import Source, check_source, updated_tensors, write_update_
from ditprune.pruning.update.update import check_needs_calls, gram_limit, update_targets
from ditprune.reporting import card
from ditprune.targets.discover import Target
from ditprune.targets.matrix import as_matrix
from ditprune.writing.files import write_manifest
from ditprune.writing.staging import Staging, resumable_folder

__all__ = ["check_scorable", "prune_", "prune_checkpoint", "prune_weight_"]

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
        max_gram_bytes: memory for Grams, 4 GB by default; fewer bytes mean more passes over the
            batches.
        progress: is told how far the work is.
        recipe: what to do; excludes `sparsity` and `words`.
        words: the words of a recipe, as in `saliency="wanda"`; see `Recipe`.

    Returns:
        What was done to each target.

    Raises:
        RecipeError, ModelError, TargetError, StatisticsError: before anything is changed.
    """
    recipe = build(recipe, sparsity=sparsity, **words)
    check_scorable(recipe, stats)
    if batches is not None:
        check_needs_calls(recipe, "batches")
    if max_gram_bytes is not None:
        gram_limit(recipe, max_gram_bytes)
    selection = select_in_module(denoiser, recipe, stats)
    read = read_module(denoiser)
    # Score everything once before anything changes, so that a refusal leaves the module whole.
    make_plan(selection, read, stats, recipe)
    if recipe.updates_weights:
        calls = [Call.of(batch) for batch in batches or ()]
        updates = update_targets(
            denoiser, selection.targets, stats, recipe, calls, progress, max_gram_bytes
        )
        outcomes = {
            name: write_update_(read(update.layer.target), update)
            for name, update in updates.items()
        }
    else:
        outcomes = {
            name: prune_weight_(target, read(target), stats, recipe)
            for name, target in selection.targets.items()
        }
    return Outcome.of(selection, outcomes, recipe)


def prune_checkpoint(
    model: ModelFolder,
    out: Path,
    stats: Mapping[str, Statistics] | None,
    recipe: Recipe,
    overwrite: bool = False,
    progress: Progress = silent,
    source: Source | None = None,
) -> dict[str, Outcome]:
    """Prune every denoiser of a folder into another, with three tensors in memory at a time.

    `out` appears whole at the end or not at all. Everything but the removed weights is copied
    byte for byte; only README.md is `out`'s own card, and the model's becomes README.base.md. A
    killed or interrupted run leaves its work beside `out`; the next one continues it if the
    model, the statistics, the recipe and the versions are the same.

    Args:
        stats: by denoiser; a single entry serves a single denoiser whatever its key.
        source: calibration calls, where the recipe updates weights.

    Raises:
        DitpruneError: before any work where it can be known, else with `out` as it was.
    """
    check_scorable(recipe, stats)
    if source is not None or recipe.needs_calls:
        check_source(model, recipe, source)
    jobs = open_jobs(model, stats, recipe)
    size_bytes, identity = num_bytes(model, jobs), run_identity(model, jobs, recipe)
    if source is not None:
        identity["calibration_set"] = source.identity()
    with resumable_folder(out, model.root, size_bytes, identity, overwrite) as staging:
        if not staging.is_written:
            copy_other_files(model, {job.name: job.weights for job in jobs}, staging.part)
        outcomes = {
            job.name: _prune_denoiser(model, job, staging, recipe, progress, source) for job in jobs
        }
        if not staging.is_written:
            card.write(staging.part, base_model=model.hub_id)
        return outcomes


def _prune_denoiser(
    model: ModelFolder,
    job: Job,
    staging: Staging,
    recipe: Recipe,
    progress: Progress,
    source: Source | None,
) -> Outcome:
    """Write what is not written yet; the outcome covers all of it."""
    if staging.is_written:
        return _outcome(job, staging, recipe)
    targets = {f"{name}.weight": target for name, target in job.selection.targets.items()}
    folder, updates_file = staging.part / job.folder, _updates_file(staging, job)
    updates = (
        updated_tensors(model, job, source, recipe, updates_file, progress)
        if recipe.updates_weights
        else None
    )
    layout = layout_of(job.weights)
    with TensorRewriter(
        job.name, job.weights, layout, folder, staging.journal, progress
    ) as rewriter:
        for entry, raw in rewriter:
            note = None
            if entry.name in targets:
                target, weight = targets[entry.name], as_matrix(as_tensor(raw, entry))
                if updates is None:
                    outcome = prune_weight_(target, weight, job.stats, recipe)
                else:
                    updated_weight, outcome = updates[target.name]
                    weight.copy_(as_matrix(updated_weight))
                note = asdict(outcome)
                del weight  # or its bytes would stay in memory until the next target
            rewriter.write(entry, raw, note)
            del raw
    hashes = {
        entry.name: rewriter.written[entry.name]["sha256"] for entry in job.weights.in_order()
    }
    denoiser_outcome = _outcome(job, staging, recipe)
    write_manifest(folder, claims(denoiser_outcome, job.base, hashes, job.stats))
    updates_file.unlink(missing_ok=True)
    return denoiser_outcome


@torch.no_grad()
def prune_weight_(
    target: Target, weight: Tensor, stats: Statistics | None, recipe: Recipe
) -> TargetOutcome:
    """Zero the least important entries of one weight [C_out, C_in], in place."""
    scores = scores_of(target, weight, stats, recipe)
    g_out = heterogeneity(scores)
    groups = recipe.groups(g_out)
    num_groups, group_size = groups.group_shape(*target.shape)
    num_keep = groups.num_keep(group_size, recipe.sparsity)
    keep = keep_best(scores.reshape(num_groups, group_size), num_keep).reshape(weight.shape)
    del scores  # the largest tensor in memory
    num_zero = 0
    for rows in row_chunks(weight):
        weight[rows].view(_BITS[weight.element_size()]).mul_(keep[rows])
        num_zero += int(torch.count_nonzero(weight[rows] == 0))
    return TargetOutcome.of(target, groups, recipe.sparsity, g_out, keep, num_zero)


def check_scorable(recipe: Recipe, stats: object | None) -> None:
    """Refuse a saliency that needs statistics where there are none. Raises RecipeError."""
    if not can_score(recipe, stats):
        raise RecipeError(
            f"--saliency {recipe.saliency.name} needs the inputs of the layers and no statistics "
            "were given; run `ditprune calibrate` and pass --statistics, or use magnitude"
        )


def _outcome(job: Job, staging: Staging, recipe: Recipe) -> Outcome:
    """The outcome of a denoiser whose tensors are all in the journal."""
    written = written_tensors(staging.journal, job.name)
    targets = {
        name: TargetOutcome.from_json(written[f"{name}.weight"]["note"])
        for name in job.selection.targets
    }
    return Outcome.of(job.selection, targets, recipe)


def _updates_file(staging: Staging, job: Job) -> Path:
    """Where updated weights are kept until the denoiser is written."""
    return staging.part / f".updates-{job.name}.safetensors"
