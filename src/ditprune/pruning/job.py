"""One denoiser of a folder and what a run does with it; and which run it is."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from ditprune.checkpoints import manifest
from ditprune.checkpoints.copy_folder import copied_bytes, stamp
from ditprune.checkpoints.locate import ModelFolder
from ditprune.checkpoints.weights import Weights, sha256
from ditprune.method.recipe import Recipe
from ditprune.method.statistics.collected import Statistics
from ditprune.pruning.plan import (
    Plan,
    Selection,
    make_plan,
    read_weights,
    select_in_checkpoint,
    statistics_of,
)


@dataclass(frozen=True)
class Job:
    """A denoiser on disk, checked, with its targets.

    Args:
        name: its component of the pipeline.
        folder: its folder, from the root of the model.
        base: what tells it from other dense models.
    """

    name: str
    folder: Path
    weights: Weights
    selection: Selection
    stats: Statistics | None
    base: Mapping[str, Any]


def open_jobs(
    model: ModelFolder, stats: Mapping[str, Statistics] | None, recipe: Recipe
) -> list[Job]:
    """One for every denoiser; every check before work."""
    return [_open(model, name, stats, recipe) for name in model.denoisers]


def plan_jobs(jobs: Sequence[Job], recipe: Recipe) -> dict[str, Plan]:
    """What would be done to each, reading one weight at a time (none without statistics)."""
    return {
        job.name: make_plan(job.selection, read_weights(job.weights), job.stats, recipe)
        for job in jobs
    }


def num_bytes(model: ModelFolder, jobs: Sequence[Job]) -> int:
    """What the copy takes on the disk, without its manifests and its card."""
    return copied_bytes(model, _weights(jobs))


def identity_of(model: ModelFolder, jobs: Sequence[Job], recipe: Recipe) -> dict[str, Any]:
    """What must be the same for a run to go on with the work of another, as JSON gives it back."""
    values = {
        "versions": manifest.versions(),
        "recipe": recipe.to_json(),
        "files": stamp(model, _weights(jobs)),
        "denoisers": {
            job.name: {**job.base, "statistics": job.stats and _digest(job.stats)} for job in jobs
        },
    }
    return json.loads(json.dumps(values))


def base_of(model: ModelFolder, folder: Path, weights: Weights, fingerprint: str) -> dict[str, Any]:
    """What identifies a denoiser before it is pruned, for its manifest."""
    return {
        "model": model.root.resolve().name,
        "fingerprint": fingerprint,
        "config_sha256": sha256((folder / "config.json").read_bytes()),
        "headers_sha256": weights.header_hashes(),
    }


def _open(
    model: ModelFolder, name: str, stats: Mapping[str, Statistics] | None, recipe: Recipe
) -> Job:
    folder = model.denoisers[name]
    denoiser_stats = statistics_of(stats, name, model.denoisers, recipe)
    weights = Weights(folder)
    selection = select_in_checkpoint(folder, weights, recipe, denoiser_stats)
    base = base_of(model, folder, weights, selection.fingerprint)
    return Job(name, folder.relative_to(model.root), weights, selection, denoiser_stats, base)


def _weights(jobs: Sequence[Job]) -> dict[str, Weights]:
    return {job.name: job.weights for job in jobs}


def _digest(stats: Statistics) -> str:
    """A hash of everything in the statistics."""
    digest = hashlib.sha256()
    for name, state in sorted(stats.column_norms.items()):
        digest.update(f"{name} {state.tokens_in_bin}\n".encode())
        digest.update(state.sum_squares.cpu().numpy().tobytes())
    rest = {f.name: getattr(stats, f.name) for f in fields(stats) if f.name != "column_norms"}
    digest.update(json.dumps(rest, sort_keys=True, default=dict).encode())
    return digest.hexdigest()
