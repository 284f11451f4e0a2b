"""Recipes that update weights, for a denoiser of a folder: from its calibration calls to tensors.

What was computed is kept beside OUT until OUT is there, so a killed run need not do it again.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ditprune.calls import Call
from ditprune.checkpoints.calibration_set import CalibrationSet
from ditprune.checkpoints.copy_folder import stamp_of
from ditprune.checkpoints.locate import ModelFolder
from ditprune.denoiser.pipeline import load_denoiser
from ditprune.denoiser.placement import Placement
from ditprune.denoiser.replay import fitting, run_call
from ditprune.denoiser.rows import to_placement
from ditprune.errors import ModelError, RecipeError
from ditprune.method.recipe import Recipe
from ditprune.progress import Progress
from ditprune.pruning.job import Job, TargetOutcome, num_bytes
from ditprune.pruning.update.judge import keep_aside
from ditprune.pruning.update.layers import TargetUpdate, check_fits
from ditprune.pruning.update.prepared import UpdateInputs, prepare_all
from ditprune.pruning.update.share import Chosen
from ditprune.pruning.update.update import (
    RefinementResult,
    check_has_calls,
    check_needs_calls,
    check_needs_grams,
    update_targets,
)
from ditprune.writing.json_file import parse_json
from ditprune.writing.tensors_file import load_tensors, save_tensors

_KEY = "ditprune.updates"


@dataclass(frozen=True)
class Source:
    """What a recipe that updates weights takes beside weights and statistics.

    Args:
        calibration_set: complete.
        placement: where the denoiser runs.
        max_gram_bytes: what Grams may take together, 4 GB by default; fewer bytes are more passes
            over the calls.
        component: whose calls are taken, where a denoiser has no pipeline; by default those of
            each denoiser's own component.
        max_memory: bytes that updates may take.
    """

    calibration_set: CalibrationSet
    placement: Placement
    max_gram_bytes: int | None = None
    component: str | None = None
    max_memory: int | None = None

    def identity(self) -> dict[str, Any]:
        """What must be the same for a run to continue with the work of another."""
        dtype = str(self.placement.dtype).removeprefix("torch.")
        return {
            "protocol": dict(self.calibration_set.protocol),
            "guard": dict(self.calibration_set.identity),
            "dtype": dtype,
            **({} if self.component is None else {"component": self.component}),
        }


@contextmanager
def unchanged(source: Source | None) -> Iterator[None]:
    """Refuse, at the end of the block, calls that were replaced in it. Raises ModelError."""
    before = None if source is None else _stamp(source.calibration_set)
    yield
    if source is not None and _stamp(source.calibration_set) != before:
        raise ModelError(
            f"{source.calibration_set.folder}: the calls were changed while they were read; run "
            "the same command again when nothing writes there"
        )


def _stamp(calls: CalibrationSet) -> str | None:
    try:
        return stamp_of(map(calls.file, range(calls.num_units)), calls.folder)
    except OSError:  # one is gone
        return None


def check_source(model: ModelFolder, recipes: Mapping[str, Recipe], source: Source | None) -> None:
    """Refuse, before any work, calls that are not there, not whole or not of these denoisers.

    Raises RecipeError, and ModelError for a set that cannot be read.
    """
    if source is not None and source.max_gram_bytes is not None:
        check_needs_grams(recipes.values(), "--gram-memory")
    if source is None:
        if any(recipe.needs_calls for recipe in recipes.values()):
            raise RecipeError(
                "this recipe runs the denoiser on calibration calls and none were given; "
                "sample them with `ditprune calibrate --calibration-set DIR` and pass "
                "--calibration-set DIR"
            )
        return
    check_needs_calls(recipes.values(), "source")
    calls = source.calibration_set
    if missing := calls.missing():
        raise RecipeError(
            f"--calibration-set {calls.folder}: {len(missing)} of {calls.num_units} units are "
            "missing; finish it with the `ditprune calibrate` that began it"
        )
    for name, recipe in recipes.items():
        if recipe.needs_calls and next(_stored(source.component or name, calls), None) is None:
            raise RecipeError(
                f"--calibration-set {calls.folder}: no call in it reaches {name}; sample one from "
                "this model, with the pipeline's own number of steps"
            )


def room_bytes(model: ModelFolder, jobs: Sequence[Job]) -> int:
    """What the disk must have room for: the copy, and the updated weights of one denoiser."""
    updated_bytes = [
        sum(job.weights.entries[f"{name}.weight"].size_bytes for name in job.selection.targets)
        for job in jobs
        if job.recipe.updates_weights
    ]
    return num_bytes(model, jobs) + max(updated_bytes, default=0)


@torch.no_grad()
def write_update_(weight: Tensor, done: TargetUpdate) -> TargetOutcome:
    """Put an updated weight in the place of a dense one [C_out, C_in], in its dtype."""
    layer = done.layer
    check_fits(layer.target.name, done.weight, weight.dtype)
    weight.copy_(done.weight)
    num_zero = int(torch.count_nonzero(weight == 0))
    num_pruned = done.keep.numel() - int(torch.count_nonzero(done.keep))
    return TargetOutcome.of(
        layer.target, layer.groups, done.sparsity, layer.g_out, num_pruned, num_zero,
        sparsity=done.sparsity, damping=done.damping,
    )  # fmt: skip


@dataclass(frozen=True)
class Loading:
    """A denoiser of a folder and its calibration calls, both loaded when they are first used.

    Args:
        source: None for a recipe that needs no calls.
    """

    model: ModelFolder
    job: Job
    source: Source | None

    @cached_property
    def denoiser(self) -> nn.Module:
        """The dense one."""
        placement = Placement() if self.source is None else self.source.placement
        return load_denoiser(self.model.denoisers[self.job.name], placement)

    @cached_property
    def calls(self) -> list[Call]:
        """All of them. Raises ModelError where the denoiser cannot run them."""
        if self.source is None:
            return []
        calls = list(calls_of(self.job, self.source))
        check_has_calls(calls)
        with fitting(self.source.calibration_set.folder):  # what fails later is no fault of theirs
            run_call(self.denoiser, calls[0])
        return calls

    def inputs(self, calls: Sequence[Call], progress: Progress) -> UpdateInputs:
        """What an update begins with."""
        most = None if self.source is None else self.source.max_gram_bytes
        targets, stats = self.job.selection.targets, self.job.stats
        return UpdateInputs(self.denoiser, targets, stats, calls, progress, most)


@dataclass(frozen=True, eq=False)
class UpdatedTensors:
    """By target its new weight and its outcome; and what became of the refinement, if any."""

    tensors: Mapping[str, tuple[Tensor, TargetOutcome]]
    refined: RefinementResult | None


def updated_tensors(
    loading: Loading, recipe: Recipe, file: Path, progress: Progress, chosen: Chosen | None = None
) -> UpdatedTensors:
    """The new weight of every target, in its stored dtype and shape, and its outcome.

    Args:
        file: where they are kept, and found again by the run that goes on.
        chosen: where a `max_error` decided the share; then some rows are kept aside.

    Raises ModelError for calls that the denoiser cannot run.
    """
    if file.is_file():
        return _restore(file)
    job, calls = loading.job, loading.calls if recipe.needs_calls or chosen else []
    if chosen is not None:
        calls, _ = keep_aside(loading.denoiser, calls)
    costs, prepared = (None, None) if chosen is None else (chosen.costs, chosen.prepared)
    inputs = loading.inputs(calls, progress)
    if chosen is not None and prepared is None:  # so that both runs take the same way
        prepared = prepare_all(inputs, recipe)
    done = update_targets(inputs, recipe, prepared, costs)
    tensors = {name: stored_update(job, name, update) for name, update in done.targets.items()}
    updates = UpdatedTensors(tensors, done.refined)
    save_updates(updates, file)
    return updates


def stored_update(job: Job, name: str, update: TargetUpdate) -> tuple[Tensor, TargetOutcome]:
    """A target's new weight, in its stored dtype and shape, and what was done to it."""
    weight = job.weights.read(f"{name}.weight")
    return weight, write_update_(weight.flatten(1), update)


def calls_of(job: Job, source: Source) -> Iterator[Call]:
    """The calibration calls of this denoiser, on its device, one unit in memory at a time."""
    for call in _stored(source.component or job.name, source.calibration_set):
        yield to_placement(call, source.placement.device, source.placement.dtype)


def _stored(denoiser: str, calls: CalibrationSet) -> Iterator[Call]:
    for unit in range(calls.num_units):
        for call in calls.read(unit)[0]:
            if call.denoiser == denoiser:
                yield call


def save_updates(updates: UpdatedTensors, file: Path) -> None:
    """Keep all updates for the run that goes on."""
    outcomes = {name: asdict(outcome) for name, (_, outcome) in updates.tensors.items()}
    tensors = {name: weight for name, (weight, _) in updates.tensors.items()}
    record = {"targets": outcomes, "refined": updates.refined and updates.refined.to_json()}
    save_tensors(tensors, {_KEY: json.dumps(record)}, file)


def _restore(file: Path) -> UpdatedTensors:
    tensors, metadata = load_tensors(file)
    record = parse_json(metadata[_KEY])
    outcomes, refined = record["targets"], record["refined"]
    return UpdatedTensors(
        {name: (w, TargetOutcome.from_json(outcomes[name])) for name, w in tensors.items()},
        None if refined is None else RefinementResult.from_json(refined),
    )
