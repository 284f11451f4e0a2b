"""The one loop: score → group → keep → write, for a module or a folder tensor by tensor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ditprune.checkpoints import manifest
from ditprune.checkpoints.locate import ModelFolder
from ditprune.checkpoints.output import check_folder, staged_folder
from ditprune.checkpoints.rewrite import (
    ShardWriter,
    copied_bytes,
    copy_other_files,
    header_hashes,
    sha256,
    tensors_of,
)
from ditprune.checkpoints.weights import Weights, as_tensor
from ditprune.errors import RecipeError
from ditprune.granularity.cag import CAG, heterogeneity
from ditprune.masks import keep_best
from ditprune.plan import (
    Read,
    Selection,
    can_score,
    make_plan,
    measure_heterogeneity,
    read_module,
    read_weights,
    scores_of,
    select_in_checkpoint,
    select_in_module,
)
from ditprune.progress import Report, silent
from ditprune.recipe import Recipe, build
from ditprune.statistics.collected import Statistics
from ditprune.targets.discover import Target
from ditprune.targets.matrix import as_matrix


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
    """

    granularity: str
    num_groups: int
    g_out: float
    num_asked: int
    num_pruned: int
    num_zero: int


@dataclass(frozen=True)
class Outcome:
    """What happened to a denoiser: every target by name, and what stayed dense and why."""

    targets: Mapping[str, TargetOutcome]
    skipped: Mapping[str, str]
    num_parameters: int
    recipe: Recipe
    cag_threshold: float | None

    @property
    def num_weights(self) -> int:
        """Weights of all pruned targets together."""
        return sum(target.num_weights for target in self.targets.values())

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


def prune_(
    denoiser: nn.Module,
    stats: Statistics | None = None,
    sparsity: float | None = None,
    saliency: Any = "stw",
    granularity: Any = None,
    pattern: Any = None,
    include: str | Sequence[str] | None = None,
    exclude: str | Sequence[str] | None = None,
    *,
    weight_power: float | None = None,
    activation_power: float | None = None,
    cag_threshold: float | str | None = None,
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
        weight_power, activation_power, cag_threshold: constants of a choice given by name.

    Returns:
        What was done to each target.

    Raises:
        RecipeError, ModelError, TargetError, StatisticsError: before anything is changed.
    """
    recipe = build(
        saliency, granularity, sparsity, pattern, weight_power, activation_power, cag_threshold,
        include, exclude,
    )  # fmt: skip
    check_scorable(recipe, stats)
    selection = select_in_module(denoiser, recipe, stats)
    read = read_module(denoiser)
    # Scores everything once before anything changes, so that a refusal leaves the module whole.
    threshold = make_plan(selection, read, stats, recipe).cag_threshold
    outcomes = {
        name: prune_weight_(target, read(target), stats, recipe, threshold)
        for name, target in selection.targets.items()
    }
    return Outcome(outcomes, selection.skipped, selection.num_parameters, recipe, threshold)


def prune_checkpoint(
    model: ModelFolder,
    out: Path,
    stats: Statistics | None,
    recipe: Recipe,
    overwrite: bool = False,
    report: Report = silent,
) -> Outcome:
    """Prune a folder into another with one tensor in memory at a time.

    `out` appears whole at the end or not at all. Everything but the removed weights is copied
    byte for byte.

    Raises:
        DitpruneError: before any work where it can be known, else with `out` as it was.
    """
    check_scorable(recipe, stats)
    weights = Weights(model.denoiser)
    selection = select_in_checkpoint(model, weights, recipe, stats)
    check_folder(out, model.root, copied_bytes(model, weights), overwrite)
    threshold = resolve_threshold(selection, read_weights(weights), stats, recipe)
    by_tensor = {f"{name}.weight": target for name, target in selection.targets.items()}
    outcomes: dict[str, TargetOutcome] = {}
    hashes: dict[str, str] = {}
    with staged_folder(out) as part:
        copy_other_files(model, weights, part)
        folder = part / model.denoiser.relative_to(model.root)
        with ShardWriter(weights, folder) as writer:
            for entry, raw in tensors_of(weights):
                target = by_tensor.get(entry.name)
                if target is not None:
                    weight = as_matrix(as_tensor(raw, entry))
                    outcomes[target.name] = prune_weight_(target, weight, stats, recipe, threshold)
                    report("pruning targets", len(outcomes), len(by_tensor))
                hashes[entry.name] = sha256(raw)
                writer.write(entry, raw)
        in_order = {name: outcomes[name] for name in selection.targets}
        whole = Outcome(in_order, selection.skipped, selection.num_parameters, recipe, threshold)
        manifest.write(folder, _manifest(model, selection, whole, hashes, stats))
    return whole


def check_scorable(recipe: Recipe, stats: Statistics | None) -> None:
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
    keep = keep_best(scores.reshape(num_groups, group_size), num_keep)
    weight.masked_fill_(~keep.view(weight.shape), 0)
    return TargetOutcome(
        **asdict(target),
        granularity=groups.name,
        num_groups=num_groups,
        g_out=g_out,
        num_asked=num_groups * (group_size - num_keep),
        num_pruned=keep.numel() - int(torch.count_nonzero(keep)),
        num_zero=weight.numel() - int(torch.count_nonzero(weight)),
    )


def _manifest(
    model: ModelFolder,
    selection: Selection,
    outcome: Outcome,
    hashes: Mapping[str, str],
    stats: Statistics | None,
) -> dict[str, Any]:
    """The claims that `verify` checks, as plain values."""
    tensors = {f"{name}.weight" for name in outcome.targets}
    return {
        "recipe": outcome.recipe.to_json(),
        "cag_threshold": outcome.cag_threshold,
        "base": {
            "model": model.root.resolve().name,
            "fingerprint": selection.fingerprint,
            "config_sha256": sha256((model.denoiser / "config.json").read_bytes()),
            "headers_sha256": header_hashes(Weights(model.denoiser)),
        },
        "statistics": stats and {"num_calls": stats.num_calls, "protocol": dict(stats.protocol)},
        "totals": {
            "num_targets": len(outcome.targets),
            "num_weights": outcome.num_weights,
            "num_pruned": outcome.num_pruned,
            "sparsity": outcome.sparsity,
            "num_parameters": outcome.num_parameters,
            "model_sparsity": outcome.model_sparsity,
        },
        "skipped": dict(outcome.skipped),
        "targets": {
            name: {k: v for k, v in asdict(target).items() if k != "name"}
            | {"sha256": hashes[f"{name}.weight"]}
            for name, target in outcome.targets.items()
        },
        "untouched": {name: sha for name, sha in hashes.items() if name not in tensors},
    }
