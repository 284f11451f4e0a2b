"""The loop that prunes: for each tensor read, score, group, keep, write.

`prune_denoiser_` runs it over a loaded module, `prune_checkpoint` over the files of a folder.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ditprune.calibration.workers import Worker
from ditprune.calls import Call
from ditprune.checkpoints.copy_folder import beside, check_unchanged, copy_other_files
from ditprune.checkpoints.locate import ModelFolder
from ditprune.checkpoints.rewrite_tensors import TensorRewriter, written_tensors
from ditprune.checkpoints.skeleton import weights_print
from ditprune.checkpoints.statistics_file import Statistics
from ditprune.checkpoints.weights import as_tensor, layout_of
from ditprune.method.recipe import Recipe
from ditprune.method.words import build_each
from ditprune.progress import Progress, silent
from ditprune.pruning.job import (
    Job,
    Outcome,
    TargetOutcome,
    claims,
    open_jobs,
    outcome_of,
    run_identity,
    weights_of,
)
from ditprune.pruning.plan import make_plan, read_module, read_weights
from ditprune.pruning.scoring import check_scorable
from ditprune.pruning.selection import Selection, select_in_module
from ditprune.pruning.update.blockwise.in_folder import (
    ask_for_help,
    folder_of,
    help_with_blocks,
    updates_of,
)
from ditprune.pruning.update.budgets import shares_of_weights
from ditprune.pruning.update.error_folder import (
    keep_refinement,
    known_error,
    known_refinement,
    measure_error,
    share_in_folder,
)
from ditprune.pruning.update.folder import (
    Loading,
    Source,
    check_source,
    room_bytes,
    unchanged,
    write_update_,
)
from ditprune.pruning.update.gradients import check_gradients
from ditprune.pruning.update.judge import Judge, keep_aside
from ditprune.pruning.update.prepared import UpdateInputs, needs_gradients
from ditprune.pruning.update.share import choose_share
from ditprune.pruning.update.update import (
    check_has_calls,
    update_targets,
)
from ditprune.pruning.zeroing import prune_weight_
from ditprune.reporting import card
from ditprune.targets.discover import Target
from ditprune.targets.matrix import as_matrix
from ditprune.targets.writable import check_written
from ditprune.writing.files import write_manifest
from ditprune.writing.staging import Staging, part_of, resumable_folder

__all__ = [
    "Checked",
    "check_denoiser_to_prune",
    "prune_checkpoint",
    "prune_denoiser_",
]


@dataclass(frozen=True)
class Checked:
    """A loaded denoiser that a recipe can be applied to."""

    denoiser: nn.Module
    recipe: Recipe
    stats: Statistics | None
    selection: Selection
    calls: Sequence[Call]
    max_gram_bytes: int | None = None


def check_denoiser_to_prune(
    denoiser: nn.Module, recipe: Recipe, stats: Statistics | None, calls: Iterable[Any] | None,
    max_gram_bytes: int | None,
) -> Checked:  # fmt: skip
    """Every check before anything changes; all weights are scored once for it.

    Raises RecipeError, ModelError, TargetError, StatisticsError.
    """
    check_scorable(recipe, stats)
    selection = select_in_module(denoiser, recipe, stats)
    make_plan(selection, read_module(denoiser), stats, recipe)
    calls_read = [Call.of(batch) for batch in calls or ()]
    if recipe.needs_calls:
        check_has_calls(calls_read)
    if needs_gradients(recipe):
        check_gradients(denoiser, selection.targets, calls_read)
    return Checked(denoiser, recipe, stats, selection, calls_read, max_gram_bytes)


def prune_denoiser_(checked: Checked, progress: Progress = silent) -> Outcome:
    """Prune a checked denoiser in place."""
    recipe, stats, selection = checked.recipe, checked.stats, checked.selection
    denoiser, calls, most = checked.denoiser, checked.calls, checked.max_gram_bytes
    inputs = UpdateInputs(denoiser, selection.targets, stats, calls, progress, most)
    chosen, judge, refined = None, None, None
    if recipe.max_error is not None:
        calls, aside = keep_aside(denoiser, calls)
        judge, inputs = Judge(denoiser, aside), replace(inputs, calls=calls)
        chosen = choose_share(inputs, recipe)
        recipe = chosen.recipe
    if recipe.updates_weights:
        costs, prepared = (None, None) if chosen is None else (chosen.costs, chosen.prepared)
        updates = update_targets(inputs, recipe, prepared, costs)
        refined = None if updates.refined is None else updates.refined.to_json()
        outcomes = {
            name: _written(denoiser, update.layer.target, partial(write_update_, done=update))
            for name, update in updates.targets.items()
        }
    else:
        outcomes = _zeroed(checked, recipe, progress)
    outcome = outcome_of(selection, outcomes, recipe, stats)
    if chosen and judge:
        outcome = replace(outcome, error=chosen.measured(judge, denoiser))
    pruned = weights_print(denoiser, selection.targets.values())
    return replace(outcome, refined=refined, pruned=pruned)


def _zeroed(checked: Checked, recipe: Recipe, progress: Progress) -> dict[str, TargetOutcome]:
    """Every target without an update of what stays."""
    denoiser, stats, targets = checked.denoiser, checked.stats, checked.selection.targets
    shares = shares_of_weights(targets, read_module(denoiser), stats, recipe)
    outcomes = {}
    for number, (name, target) in enumerate(targets.items(), start=1):
        share = shares.get(name)
        write_ = partial(prune_weight_, target, stats=stats, recipe=recipe, share=share)
        outcomes[name] = _written(denoiser, target, write_)
        progress("pruning", number, len(targets))
    return outcomes


def _written(
    denoiser: nn.Module, target: Target, write_: Callable[[Tensor], TargetOutcome]
) -> TargetOutcome:
    """Write a target's weight, and read it back from its layer. Raises ModelError."""
    weight = read_module(denoiser)(target)
    before = weight.clone()
    outcome = write_(weight)
    check_written(denoiser, target.name, weight, before)
    return outcome


def prune_checkpoint(
    model: ModelFolder,
    out: Path,
    stats: Mapping[str, Statistics] | None,
    recipe: Recipe | Mapping[str, Recipe],
    overwrite: bool = False,
    progress: Progress = silent,
    source: Source | None = None,
    worker: Worker | None = None,
) -> dict[str, Outcome]:
    """Prune every denoiser of a folder into another, with three tensors in memory at a time.

    `out` appears whole at the end or not at all. Everything but the removed weights is copied
    byte for byte; only README.md is `out`'s own card, and the model's becomes README.base.md. A
    killed or interrupted run leaves its work beside `out`; the next one continues it if the
    model, the statistics, the recipe and the versions are the same.

    Args:
        stats: by denoiser; a single entry serves a single denoiser whatever its key.
        recipe: of all denoisers, or of each.
        source: calibration calls, where the recipe updates weights.
        worker: one of several processes that share blocks; all call this function. The first alone
            writes `out` and returns outcomes.

    Raises:
        DitpruneError: before any work where it can be known, else with `out` as it was.
    """
    worker = worker or Worker()
    recipes = build_each(model.denoisers, recipe)
    for denoiser_recipe in recipes.values():
        check_scorable(denoiser_recipe, stats)
    check_source(model, recipes, source)
    jobs = open_jobs(model, stats, recipes)
    if not worker.is_first:
        for job in jobs:
            help_with_blocks(Loading(model, job, source), _updates_file(part_of(out), job), worker)
        return {}
    size_bytes, identity = room_bytes(model, jobs), run_identity(model, jobs)
    weights, copied = weights_of(jobs), {}
    if source is not None:
        identity["calibration_set"] = source.identity()
    place = resumable_folder(out, model.root, size_bytes, identity, overwrite)
    with place as staging, unchanged(source):
        if not staging.is_written:
            copy_other_files(model, weights, staging.part)
            copied = beside(model, weights, staging.part)
        outcomes = {}
        for job in jobs:
            job_copied = copied.get(job.name, {})
            outcomes[job.name] = _prune_job(
                model, job, staging, progress, source, job_copied, worker
            )
        if not staging.is_written:
            card.write(staging.part, base_model=model.hub_id)
        check_unchanged(model, weights, identity)
        return outcomes


def _prune_job(
    model: ModelFolder, job: Job, staging: Staging, progress: Progress, source: Source | None,
    copied: Mapping[str, str], worker: Worker,
) -> Outcome:  # fmt: skip
    """Write what is not written yet; the outcome covers all of it."""
    loading = Loading(model, job, source)
    chosen = share_in_folder(loading, job.recipe, staging.journal, progress)
    recipe = job.recipe if chosen is None else chosen.recipe
    if staging.is_written:
        ask_for_help(job, worker, False)
        return _outcome(job, staging, recipe)
    targets = {f"{name}.weight": target for name, target in job.selection.targets.items()}
    folder, updates_file = staging.part / job.folder, _updates_file(staging.part, job)
    rewriter = TensorRewriter(
        job.name, job.weights, layout_of(job.weights), folder, staging.journal, progress
    )
    updates, shares = None, dict[str, float | None]()
    is_due = bool(targets.keys() & rewriter.look())
    ask_for_help(job, worker, is_due and not updates_file.is_file())
    if is_due:
        if recipe.updates_weights:
            updates = updates_of(loading, recipe, updates_file, progress, chosen, worker)
            keep_refinement(staging.journal, job.name, updates.refined)
        else:
            read = read_weights(job.weights)
            shares = shares_of_weights(job.selection.targets, read, job.stats, recipe)
    chosen = chosen and replace(chosen, prepared=None)
    del loading  # or the denoiser would stay in memory
    with rewriter:
        for entry, raw in rewriter:
            note = None
            if entry.name in targets:
                target, weight = targets[entry.name], as_matrix(as_tensor(raw, entry))
                if updates is None:
                    share = shares.get(target.name)
                    outcome = prune_weight_(target, weight, job.stats, recipe, share)
                else:
                    updated_weight, outcome = updates.tensors[target.name]
                    weight.copy_(as_matrix(updated_weight))
                note = asdict(outcome)
                del weight  # or its bytes would stay in memory until the next target
            rewriter.write(entry, raw, note)
            del raw
    hashes = {
        entry.name: rewriter.written[entry.name]["sha256"] for entry in job.weights.in_order()
    }
    if chosen is not None:
        measure_error(Loading(model, job, source), chosen, folder, staging.journal)
    denoiser_outcome = _outcome(job, staging, recipe)
    write_manifest(folder, claims(denoiser_outcome, job.base, hashes, copied))
    updates_file.unlink(missing_ok=True)
    shutil.rmtree(folder_of(updates_file), ignore_errors=True)
    return denoiser_outcome


def _outcome(job: Job, staging: Staging, recipe: Recipe) -> Outcome:
    """The outcome of a denoiser whose tensors are all in the journal."""
    written = written_tensors(staging.journal, job.name)
    targets = {
        name: TargetOutcome.from_json(written[f"{name}.weight"]["note"])
        for name in job.selection.targets
    }
    outcome = outcome_of(job.selection, targets, recipe, job.stats)
    error = known_error(staging.journal, job.name)
    return replace(outcome, error=error, refined=known_refinement(staging.journal, job.name))


def _updates_file(part: Path, job: Job) -> Path:
    """Where updated weights are kept until the denoiser is written."""
    return part / f".updates-{job.name}.safetensors"
