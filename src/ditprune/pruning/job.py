"""One denoiser in a run: the job before, the outcome after, and the claims that `verify` checks."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

from ditprune.checkpoints.copy_folder import copied_bytes, stamp
from ditprune.checkpoints.locate import ModelFolder
from ditprune.checkpoints.shrunk.record import kept_when_pruned
from ditprune.checkpoints.skeleton import folder_fingerprints
from ditprune.checkpoints.statistics_file import Statistics
from ditprune.checkpoints.weights import Weights, sha256
from ditprune.method.recipe import Recipe
from ditprune.method.words import build_each
from ditprune.pruning.error_bound import ErrorBound
from ditprune.pruning.plan import Plan, make_plan, read_weights
from ditprune.pruning.selection import Selection, select_in_checkpoint, statistics_of
from ditprune.reporting.told import facts_of
from ditprune.targets.discover import Target
from ditprune.writing.files import MANIFEST, installed_versions, read_manifest
from ditprune.writing.paths import path_of
from ditprune.writing.replaceable import BESIDE


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
    recipe: Recipe
    base: Mapping[str, Any]


def open_jobs(
    model: ModelFolder, stats: Mapping[str, Statistics] | None,
    recipe: Recipe | Mapping[str, Recipe],
) -> list[Job]:  # fmt: skip
    """One for every denoiser; every check before work."""
    recipes = build_each(model.denoisers, recipe)
    return [_open(model, name, stats, recipes[name]) for name in model.denoisers]


def plan_jobs(jobs: Sequence[Job]) -> dict[str, Plan]:
    """What would be done to each, reading one weight at a time (none without statistics)."""
    return {
        job.name: make_plan(job.selection, read_weights(job.weights), job.stats, job.recipe)
        for job in jobs
    }


def num_bytes(model: ModelFolder, jobs: Sequence[Job]) -> int:
    """What the copy takes on the disk, without its manifests and its card."""
    return copied_bytes(model, weights_of(jobs))


def weights_of(jobs: Sequence[Job]) -> dict[str, Weights]:
    """The weights of every denoiser, by its name."""
    return {job.name: job.weights for job in jobs}


def run_identity(model: ModelFolder, jobs: Sequence[Job]) -> dict[str, Any]:
    """What must be the same for a run to go on with the work of another, as JSON gives it back."""
    values = {
        "versions": installed_versions(),
        "files": stamp(model, weights_of(jobs)),
        "denoisers": {
            job.name: {
                **job.base,
                "recipe": job.recipe.to_json(),
                "statistics": job.stats and _digest(job.stats),
            }
            for job in jobs
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
        **(kept_when_pruned(read_manifest(folder)) if (folder / MANIFEST).is_file() else {}),
    }


def _open(
    model: ModelFolder, name: str, stats: Mapping[str, Statistics] | None, recipe: Recipe
) -> Job:
    folder = model.denoisers[name]
    prints = partial(folder_fingerprints, folder)
    denoiser_stats = statistics_of(stats, name, model.denoisers, recipe, prints)
    weights = Weights(folder)
    selection = select_in_checkpoint(folder, weights, recipe, denoiser_stats)
    base = base_of(model, folder, weights, selection.fingerprint)
    folder = folder.relative_to(model.root)
    return Job(name, folder, weights, selection, denoiser_stats, recipe, base)


def _digest(stats: Statistics) -> str:
    """A hash of everything in the statistics."""
    digest = hashlib.sha256()
    for name, state in sorted(stats.column_norms.items()):
        digest.update(f"{name} {state.tokens_in_bin}\n".encode())
        for sums in (state.sum_squares, state.rest):
            digest.update(sums.cpu().numpy().tobytes())
    rest = {f.name: getattr(stats, f.name) for f in fields(stats) if f.name != "column_norms"}
    digest.update(json.dumps(rest, sort_keys=True, default=dict).encode())
    return digest.hexdigest()


@dataclass(frozen=True)
class TargetOutcome(Target):
    """A target and what happened to it.

    Args:
        granularity: `layer`, `channel` or N:M.
        num_groups: comparison groups.
        g_out: heterogeneity of its output channels (paper, Eq. 10).
        num_asked: weights to remove by the recipe.
        num_pruned: weights removed, counted in the mask.
        num_zero: zeros in the result; more than `num_pruned` where kept weights were zero before.
        sparsity: the share it was to lose under an allocation; None for the recipe's own.
        damping: of its reconstruction, against a unit diagonal; None without one.
    """

    granularity: str
    num_groups: int
    g_out: float
    num_asked: int
    num_pruned: int
    num_zero: int
    sparsity: float | None = None
    damping: float | None = None

    @classmethod
    def of(
        cls, target: Target, groups: Any, share: float | None, g_out: float, num_pruned: int,
        num_zero: int, **more: float | None,
    ) -> TargetOutcome:  # fmt: skip
        """What a mask did to a target whose groups were to lose this share."""
        num_groups, group_size = groups.group_shape(*target.shape)
        return cls(
            **asdict(target),
            granularity=groups.name,
            num_groups=num_groups,
            g_out=g_out,
            num_asked=num_groups * (group_size - groups.num_keep(group_size, share)),
            num_pruned=num_pruned,
            num_zero=num_zero,
            **more,  # type: ignore[arg-type]
        )

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> TargetOutcome:
        """From what `asdict` gave, by way of JSON."""
        return cls(**{**record, "shape": tuple(record["shape"])})


@dataclass(frozen=True)
class Outcome(Plan):
    """A plan that was carried out: what happened to every target, and what stayed dense and why.

    Args:
        skipped: targets that could not be scored.
        left_out: other matrices inside its blocks.
        calibration: the number of calls behind the statistics, and their protocol.
        mask: the file that the mask came from, if it came from one, and whose it was.
        error: what was asked for, expected and measured, where a `max_error` decided the share;
            the recipe is the one with that share.
        refined: whether a refinement's weights were taken, and its errors before and after.
        pruned: of what was pruned in memory, the fingerprint and the dtype of each target after.
    """

    targets: Mapping[str, TargetOutcome]  # type: ignore[assignment]
    calibration: Mapping[str, Any] | None = None
    mask: Mapping[str, Any] | None = None
    error: ErrorBound | None = None
    refined: Mapping[str, Any] | None = None
    pruned: Mapping[str, str] = field(default_factory=dict, compare=False, repr=False)

    def save(self, folder: str | Path) -> None:
        """Add ditprune.json and the mask to what `save_pretrained` wrote, and nothing else.

            outcome = ditprune.prune_(pipe, stats)
            pipe.save_pretrained("out")
            outcome.save("out")

        Args:
            folder: of a denoiser; or of a pipeline, each of whose denoisers gets its own files.

        Raises ModelError if the folder does not hold the weights that were pruned.
        """
        from ditprune.pruning.saving import save_outcome

        save_outcome(self, path_of(folder))

    def told(self) -> list[str]:
        """What stays dense, was dropped or was not reached, a line each."""
        facts = {
            n: facts_of(claims(o, {}, defaultdict(str), {})) for n, o in self.denoisers.items()
        }
        prefixes = {name: f"{name}: " if len(facts) > 1 else "" for name in facts}
        return [prefixes[name] + fact for name, lines in facts.items() for fact in lines]

    @property
    def num_pruned(self) -> int:
        """Weights removed from all targets together."""
        return sum(target.num_pruned for target in self.targets.values())

    @property
    def sparsity(self) -> float:
        """The removed share of the targets' weights."""
        return self.num_pruned / self.num_weights

    @property
    def model_sparsity(self) -> float:
        """The removed share of all parameters of the denoiser."""
        return self.num_pruned / self.num_parameters


def outcome_of(
    selection: Selection, targets: Mapping[str, TargetOutcome], recipe: Recipe,
    stats: Statistics | None,
) -> Outcome:  # fmt: skip
    """What was done to the selected targets of one denoiser."""
    calibration = None
    if stats is not None:
        calibration = {"num_calls": stats.num_calls, "protocol": dict(stats.protocol)}
    outcome: Outcome = Outcome.of(selection, targets, recipe)
    return replace(outcome, calibration=calibration)


def claims(
    outcome: Outcome,
    base: Mapping[str, Any],
    hashes: Mapping[str, str],
    beside: Mapping[str, str],
) -> dict[str, Any]:
    """The manifest of a denoiser, as plain values.

    Args:
        base: what identifies the dense model.
        hashes: the sha256 of every tensor that was written.
        beside: that of every file that is no denoiser's, by its path from the denoiser's folder.
    """
    tensors = {f"{name}.weight" for name in outcome.targets}
    return {
        "recipe": outcome.recipe.to_json(),
        "cag_threshold": outcome.recipe.cag_threshold,
        "base": dict(base),
        "statistics": outcome.calibration,
        "totals": {
            "num_targets": len(outcome.targets),
            "num_weights": outcome.num_weights,
            "num_pruned": outcome.num_pruned,
            "sparsity": outcome.sparsity,
            "num_parameters": outcome.num_parameters,
            "model_sparsity": outcome.model_sparsity,
        },
        "skipped": dict(outcome.skipped),
        "left_out": {
            name: {"num_weights": layer.num_weights, "reason": layer.reason}
            for name, layer in outcome.left_out.items()
        },
        "targets": {
            name: {k: v for k, v in asdict(target).items() if k != "name"}
            | {"sha256": hashes[f"{name}.weight"]}
            for name, target in outcome.targets.items()
        },
        "untouched": {name: sha for name, sha in hashes.items() if name not in tensors},
        BESIDE: dict(beside),
        **({} if outcome.mask is None else {"mask": dict(outcome.mask)}),
        **({} if outcome.error is None else {"max_error": asdict(outcome.error)}),
        **({} if outcome.refined is None else {"refined": dict(outcome.refined)}),
    }
