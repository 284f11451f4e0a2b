"""From folder to folder, tensor by tensor: what is written is in the journal, so a run goes on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from ditprune.checkpoints import manifest
from ditprune.checkpoints.copy_folder import copy_other_files
from ditprune.checkpoints.layout import layout_of
from ditprune.checkpoints.locate import ModelFolder
from ditprune.checkpoints.rewrite_tensors import Change, recorded, rewrite
from ditprune.checkpoints.weights import Entry, as_tensor
from ditprune.method.recipe import Recipe
from ditprune.method.statistics.collected import Statistics
from ditprune.progress import Progress, silent
from ditprune.pruning.job import Job, guard, num_bytes, open_jobs
from ditprune.pruning.module import check_scorable, prune_weight_, resolve_threshold
from ditprune.pruning.outcome import Outcome, TargetOutcome, claims, outcome_of
from ditprune.pruning.plan import read_weights
from ditprune.pruning.update.folder import Source, check_source, updated_tensors
from ditprune.reporting import card
from ditprune.targets.matrix import as_matrix
from ditprune.writing.journal import Journal
from ditprune.writing.staging import Staging, resumable_folder


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
    byte for byte; only README.md is `out`'s own card, and the model's becomes README.base.md. What
    a killed or interrupted run has left beside `out` is gone on with, where the model, the
    statistics, the recipe and the versions are the same.

    Args:
        stats: by denoiser; a single entry serves a single denoiser whatever its key.
        source: calibration calls, where the recipe updates weights.

    Raises:
        DitpruneError: before any work where it can be known, else with `out` as it was.
    """
    check_scorable(recipe, stats)
    check_source(model, recipe, source)
    jobs = open_jobs(model, stats, recipe)
    size_bytes, run = num_bytes(model, jobs), guard(model, jobs, recipe)
    if source is not None:
        run["calibration_set"] = {
            "protocol": dict(source.kept.protocol), "guard": dict(source.kept.guard),
        }  # fmt: skip
    with resumable_folder(out, model.root, size_bytes, run, overwrite) as staging:
        if not staging.is_written:
            copy_other_files(model, {job.name: job.weights for job in jobs}, staging.part)
        outcomes = {
            job.name: _prune_denoiser(model, job, staging, recipe, progress, source) for job in jobs
        }
        if not staging.is_written:
            card.write(staging.part, base_model=model.hub_id)
        return outcomes


def _prune_denoiser(
    model: ModelFolder, job: Job, staging: Staging, recipe: Recipe, progress: Progress,
    source: Source | None,
) -> Outcome:  # fmt: skip
    """Write what is not written yet; the outcome is of all of it."""
    threshold = _threshold_once(job, staging.journal, recipe)
    if not staging.is_written:
        updated = None
        if recipe.updates_weights:
            file = _updates_file(staging, job)
            updated = updated_tensors(model, job, source, recipe, threshold, file, progress)
        change, folder = _change(job, recipe, threshold, updated), staging.part / job.place
        layout = layout_of(job.weights)
        rewrite(job.name, job.weights, layout, folder, staging.journal, change, progress)
    written = recorded(staging.journal, job.name)
    targets = {
        name: TargetOutcome.from_json(written[f"{name}.weight"]["note"])
        for name in job.selection.targets
    }
    outcome = outcome_of(job.selection, targets, recipe, threshold)
    if not staging.is_written:
        hashes = {entry.name: written[entry.name]["sha256"] for entry in job.weights.in_order()}
        content = claims(outcome, job.base, hashes, job.stats)
        manifest.write(staging.part / job.place, content)
        _updates_file(staging, job).unlink(missing_ok=True)
    return outcome


def _updates_file(staging: Staging, job: Job) -> Path:
    """Where updated weights are kept until the denoiser is written."""
    return staging.part / f".updates-{job.name}.safetensors"


def _change(
    job: Job, recipe: Recipe, threshold: float | None,
    updated: Mapping[str, tuple[Tensor, TargetOutcome]] | None,
) -> Change:  # fmt: skip
    """What prunes a target's bytes where they lie and leaves every other tensor alone."""
    targets = {f"{name}.weight": target for name, target in job.selection.targets.items()}

    def change(entry: Entry, raw: memoryview) -> tuple[memoryview, dict[str, Any] | None]:
        if entry.name not in targets:
            return raw, None
        target, weight = targets[entry.name], as_matrix(as_tensor(raw, entry))
        if updated is None:
            outcome = prune_weight_(target, weight, job.stats, recipe, threshold)
        else:
            new, outcome = updated[target.name]
            weight.copy_(as_matrix(new))
        return raw, asdict(outcome)

    return change


def _threshold_once(job: Job, journal: Journal, recipe: Recipe) -> float | None:
    """The threshold of CAG as the journal has it, else found and put there."""
    for record in journal.records:
        if record.get("denoiser") == job.name and "cag_threshold" in record:
            return record["cag_threshold"]
    read = read_weights(job.weights)
    threshold = resolve_threshold(job.selection, read, job.stats, recipe)
    journal.append({"denoiser": job.name, "cag_threshold": threshold})
    return threshold
