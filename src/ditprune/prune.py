"""The one loop: score → group → keep → write, for a module or a folder tensor by tensor."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ditprune.adjusting import Source, adjusted_tensors, write_adjustment_
from ditprune.adjustment.adjust import adjust
from ditprune.calls import Call
from ditprune.checkpoints import manifest
from ditprune.checkpoints.journal import Journal
from ditprune.checkpoints.locate import ModelFolder
from ditprune.checkpoints.rewrite import ShardWriter, copy_other_files, sha256
from ditprune.checkpoints.staging import Staging, resumable_folder
from ditprune.checkpoints.stream import Syncing, stream, unchanged
from ditprune.checkpoints.weights import Entry, as_tensor
from ditprune.errors import RecipeError
from ditprune.granularity.cag import CAG, heterogeneity
from ditprune.job import Job, guard, num_bytes, open_jobs
from ditprune.masks import keep_best
from ditprune.outcome import Outcome, TargetOutcome, claims, outcome_of
from ditprune.plan import (
    Read,
    Selection,
    make_plan,
    measure_heterogeneity,
    read_module,
    read_weights,
    select_in_module,
)
from ditprune.progress import Report, silent
from ditprune.recipe import Recipe, build
from ditprune.scoring import can_score, row_chunks, scores_of
from ditprune.statistics.collected import Statistics
from ditprune.targets.discover import Target
from ditprune.targets.matrix import as_matrix

# A float as the integer of its bytes: times 0 or 1 it becomes 0 or keeps every bit.
_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_Records = dict[str, dict[str, Any]]


def prune_(
    denoiser: nn.Module,
    stats: Statistics | None = None,
    sparsity: float | None = None,
    saliency: Any = "stw",
    granularity: Any = None,
    pattern: Any = None,
    include: str | Sequence[str] | None = None,
    exclude: str | Sequence[str] | None = None,
    auxiliary: bool = False,
    *,
    weight_power: float | None = None,
    activation_power: float | None = None,
    cag_threshold: float | str | None = None,
    reconstruction: Any = None,
    mask: str | None = None,
    allocation: str | None = None,
    timestep_weighting: str | None = None,
    refinement: Any = None,
    preset: str | None = None,
    batches: Iterable[Any] | None = None,
    report: Report = silent,
) -> Outcome:
    """Prune a denoiser in place. The default is the paper's method at 50 %.

    Args:
        denoiser: any module with transformer blocks, on any device.
        stats: from `calibrate`; None where the saliency needs none (magnitude).
        sparsity: share of each comparison group to remove; 0.5 by default.
        saliency: a name in `ditprune.saliency.SALIENCIES`, or an object such as `Power(2, 1)`.
        granularity: `cag` (default), `layer`, `channel`, or an object.
        pattern: `"2:4"`, in place of sparsity and granularity; N of every M are kept.
        include, exclude: globs over target names.
        auxiliary: also prune block lists beside the trunk, such as text refiners.
        weight_power, activation_power, cag_threshold: constants of a choice given by name.
        reconstruction: how the kept weights adjust: `none` (default), `obs`, `admm`, or an object.
        mask: who chooses it: the `saliency` (default) or the `reconstruction`.
        allocation: how the total is shared: `uniform` (default), `owl`, `sensitivity`, `proxy`.
        timestep_weighting: `uniform` (default) or `log-decrease`, from noise to image.
        refinement: gradient steps at the end: `none` (default), `distill`, or an object.
        preset: `paper` (all the defaults) or `best`.
        batches: as for `calibrate`, where a recipe adjusts weights or measures budgets.
        report: hears how far it is.

    Returns:
        What was done to each target.

    Raises:
        RecipeError, ModelError, TargetError, StatisticsError: before anything is changed.
    """
    recipe = build(
        saliency, granularity, sparsity, pattern, weight_power, activation_power, cag_threshold,
        include, exclude, auxiliary, reconstruction, mask, allocation, timestep_weighting,
        refinement, preset=preset,
    )  # fmt: skip
    check_scorable(recipe, stats)
    if batches is not None and not recipe.needs_calls:
        raise RecipeError(
            "batches: this recipe adjusts no weights and measures no budgets; leave them out, or "
            "ask for a reconstruction, an allocation or preset='best'"
        )
    selection = select_in_module(denoiser, recipe, stats)
    read = read_module(denoiser)
    # Scores everything once before anything changes, so that a refusal leaves the module whole.
    threshold = make_plan(selection, read, stats, recipe).cag_threshold
    if recipe.adjusts:
        calls = [Call.of(batch) for batch in batches or ()]
        done = adjust(denoiser, selection.targets, stats, recipe, threshold, calls, report)
        outcomes = {
            name: write_adjustment_(read(one.layer.target), one) for name, one in done.items()
        }
        return outcome_of(selection, outcomes, recipe, threshold)
    outcomes = {
        name: prune_weight_(target, read(target), stats, recipe, threshold)
        for name, target in selection.targets.items()
    }
    return outcome_of(selection, outcomes, recipe, threshold)


def prune_checkpoint(
    model: ModelFolder,
    out: Path,
    stats: Mapping[str, Statistics] | None,
    recipe: Recipe,
    overwrite: bool = False,
    report: Report = silent,
    source: Source | None = None,
) -> dict[str, Outcome]:
    """Prune every denoiser of a folder into another, with three tensors in memory at a time.

    `out` appears whole at the end or not at all. Everything but the removed weights is copied
    byte for byte. What a killed or interrupted run has left beside `out` is gone on with, where
    the model, the statistics, the recipe and the versions are the same.

    Args:
        stats: by denoiser; a single entry serves a single denoiser whatever its key.
        source: calibration calls, where the recipe adjusts weights.

    Raises:
        DitpruneError: before any work where it can be known, else with `out` as it was.
    """
    check_scorable(recipe, stats)
    jobs = open_jobs(model, stats, recipe)
    size_bytes, run = num_bytes(model, jobs), guard(model, jobs, recipe)
    if source is not None:
        run["calibration_set"] = {
            "protocol": dict(source.kept.protocol), "guard": dict(source.kept.guard),
        }  # fmt: skip
    with resumable_folder(out, model.root, size_bytes, run, overwrite) as staging:
        if not staging.is_written:
            copy_other_files(model, {job.name: job.weights for job in jobs}, staging.part)
        return {
            job.name: _prune_denoiser(model, job, staging, recipe, report, source) for job in jobs
        }


def _prune_denoiser(
    model: ModelFolder, job: Job, staging: Staging, recipe: Recipe, report: Report,
    source: Source | None,
) -> Outcome:  # fmt: skip
    """Write what is not written yet; the outcome is of all of it."""
    written = {
        record["tensor"]: record
        for record in staging.journal.records
        if record.get("denoiser") == job.name and "tensor" in record
    }
    threshold = _threshold_once(job, staging.journal, recipe)
    if not staging.is_written:
        adjusted = None
        if recipe.adjusts:
            file = _adjusted_file(staging, job)
            adjusted = adjusted_tensors(model, job, source, recipe, threshold, file, report)
        written = _write_rest(job, staging, recipe, threshold, written, report, adjusted)
    targets = {
        name: TargetOutcome.from_json(written[f"{name}.weight"]["outcome"])
        for name in job.selection.targets
    }
    outcome = outcome_of(job.selection, targets, recipe, threshold)
    if not staging.is_written:
        hashes = {entry.name: written[entry.name]["sha256"] for entry in job.weights.in_order()}
        content = claims(outcome, job.base, hashes, job.stats)
        manifest.write(staging.part / job.place, content)
        _adjusted_file(staging, job).unlink(missing_ok=True)
    return outcome


def _adjusted_file(staging: Staging, job: Job) -> Path:
    """Where adjusted weights are kept until the denoiser is written."""
    return staging.part / f".adjusted-{job.name}.safetensors"


def _write_rest(
    job: Job,
    staging: Staging,
    recipe: Recipe,
    threshold: float | None,
    recorded: _Records,
    report: Report,
    adjusted: Mapping[str, tuple[Tensor, TargetOutcome]] | None,
) -> _Records:
    """Write every tensor but those recorded whose bytes are there; the records of all."""
    by_tensor = {f"{name}.weight": target for name, target in job.selection.targets.items()}
    what = "checking what is done"
    folder = staging.part / job.place
    with ShardWriter(job.weights, folder) as writer, Syncing(writer, staging.journal) as syncing:
        hashes = {name: record["sha256"] for name, record in recorded.items()}
        there = unchanged(job.weights, folder, hashes, lambda *done: report(what, *done))
        written = {name: recorded[name] for name in there}
        num_done = len(by_tensor.keys() & there)

        def change(entry: Entry, raw: memoryview) -> TargetOutcome | None:
            nonlocal num_done
            if entry.name not in by_tensor:
                return None
            target, weight = by_tensor[entry.name], as_matrix(as_tensor(raw, entry))
            if adjusted is None:
                outcome = prune_weight_(target, weight, job.stats, recipe, threshold)
            else:
                new, outcome = adjusted[target.name]
                weight.copy_(as_matrix(new))
            num_done += 1
            report("pruning targets", num_done, len(by_tensor))
            return outcome

        def write(entry: Entry, raw: memoryview, outcome: TargetOutcome | None) -> None:
            writer.write(entry, raw)
            written[entry.name] = {
                "denoiser": job.name,
                "tensor": entry.name,
                "sha256": sha256(raw),
                "outcome": outcome and asdict(outcome),
            }
            staging.journal.append(written[entry.name])
            syncing.wrote(len(raw))

        stream((e for e in job.weights.in_order() if e.name not in there), change, write)
    return written


def _threshold_once(job: Job, journal: Journal, recipe: Recipe) -> float | None:
    """The threshold of CAG as the journal has it, else found and put there."""
    for record in journal.records:
        if record.get("denoiser") == job.name and "cag_threshold" in record:
            return record["cag_threshold"]
    read = read_weights(job.weights)
    threshold = resolve_threshold(job.selection, read, job.stats, recipe)
    journal.append({"denoiser": job.name, "cag_threshold": threshold})
    return threshold


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
    groups = recipe.granularity
    if isinstance(groups, CAG):
        groups = groups.choose(g_out, threshold)
    num_groups, group_size = groups.group_shape(*target.shape)
    num_keep = groups.num_keep(group_size, recipe.sparsity)
    keep = keep_best(scores.reshape(num_groups, group_size), num_keep).reshape(weight.shape)
    del scores  # the largest thing in memory
    num_zero = 0
    for rows in row_chunks(weight):
        weight[rows].view(_BITS[weight.element_size()]).mul_(keep[rows])
        num_zero += int(torch.count_nonzero(weight[rows] == 0))
    return TargetOutcome(
        **asdict(target),
        granularity=groups.name,
        num_groups=num_groups,
        g_out=g_out,
        num_asked=num_groups * (group_size - num_keep),
        num_pruned=keep.numel() - int(torch.count_nonzero(keep)),
        num_zero=num_zero,
    )
