"""What a run would do, before any weight changes: targets, heterogeneity, comparison groups."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ditprune.checkpoints.skeleton import (
    combined_fingerprint,
    module_fingerprints,
    skeleton,
    weight_fingerprints,
)
from ditprune.checkpoints.statistics_file import Statistics
from ditprune.checkpoints.weights import Weights, dtype_of
from ditprune.denoisers import DENOISER, OfDenoisers, qualified
from ditprune.errors import ModelError, RecipeError, StatisticsError, TargetError
from ditprune.method.granularity import CAG, heterogeneity
from ditprune.method.recipe import Recipe
from ditprune.method.reconstruction import Reconstruction
from ditprune.method.saliency import Saliency
from ditprune.method.statistics.column_norm import ColumnNorm, timestep_weights
from ditprune.targets.coverage import LeftOut, left_out, warn_of_outside
from ditprune.targets.discover import Target, discover, select
from ditprune.targets.matrix import as_matrix

Read = Callable[[Target], Tensor]

_CHUNK_WEIGHTS = 1 << 20  # scores of 4 MiB


@dataclass(frozen=True)
class Selection:
    """What a run works on: targets by name, what stays dense and why, and whose weights.

    Args:
        blocks: the globs that said which modules are the blocks, of the recipe or the statistics.
    """

    targets: Mapping[str, Target]
    skipped: Mapping[str, str]
    left_out: Mapping[str, LeftOut]
    fingerprint: str
    num_parameters: int
    blocks: tuple[str, ...] = ()


@dataclass(frozen=True)
class PlannedTarget(Target):
    """A target and what is known of its pruning.

    Args:
        g_out: heterogeneity of its output channels (paper, Eq. 10); None without statistics.
        granularity: the comparison group it will have, `layer`, `channel` or N:M; None where
            that takes statistics which were not given.
        num_prune: weights to remove; None where the granularity is not known, or where an
            allocation or the share under a `max_error` has yet to be measured.
    """

    g_out: float | None = None
    granularity: str | None = None
    num_prune: int | None = None


@dataclass(frozen=True)
class Plan(OfDenoisers):
    """The planned targets by name, what stays dense and why, and the whole they are part of.

    Args:
        recipe: by denoiser, if several have recipes that differ.
        fingerprint: of the weights of all targets, before anything is removed.
    """

    targets: Mapping[str, PlannedTarget]
    skipped: Mapping[str, str]
    left_out: Mapping[str, LeftOut]
    num_parameters: int
    recipe: Any
    fingerprint: str = ""
    component: str = DENOISER
    parts: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, selection: Selection, targets: Mapping[str, Any], recipe: Recipe) -> Any:
        """These targets, with all else as it was selected; the recipe with those blocks."""
        rest = (selection.skipped, selection.left_out, selection.num_parameters)
        with_blocks = replace(recipe, blocks=selection.blocks)
        return cls(targets, *rest, with_blocks, selection.fingerprint)

    @classmethod
    def joined(cls, parts: Mapping[str, Any]) -> Any:
        """The plans of all denoisers of a pipeline as one."""
        if len(parts) == 1:
            ((component, plan),) = parts.items()
            return replace(plan, component=component)
        recipes = {name: part.recipe for name, part in parts.items()}
        first = next(iter(recipes.values()))
        return cls(
            qualified({name: part.targets for name, part in parts.items()}),
            qualified({name: part.skipped for name, part in parts.items()}),
            qualified({name: part.left_out for name, part in parts.items()}),
            sum(part.num_parameters for part in parts.values()),
            first if all(recipe == first for recipe in recipes.values()) else recipes,
            parts=parts,
        )

    @property
    def cag_threshold(self) -> float | None:
        """The G_out from which CAG prunes per channel; None where no target is grouped by it."""
        is_grouped = all(target.granularity is not None for target in self.targets.values())
        return self.recipe.cag_threshold if is_grouped and isinstance(self.recipe, Recipe) else None

    @property
    def num_weights(self) -> int:
        """Weights of all targets together."""
        return sum(target.num_weights for target in self.targets.values())


def statistics_of(
    stats: Mapping[str, Statistics] | None, denoiser: str, denoisers: Collection[str],
    recipe: Recipe, fingerprints: Callable[[tuple[str, ...]], Mapping[str, str]],
) -> Statistics | None:  # fmt: skip
    """The statistics of one denoiser of a model; a single entry serves a single denoiser.

    Where a single denoiser of a pipeline stands alone, those of its weights are taken.

    Args:
        fingerprints: gives those of the denoiser's weights, with these globs for its blocks.

    Raises StatisticsError where they are needed and not there.
    """
    if stats is None:
        return None
    if len(denoisers) == len(stats) == 1:
        return next(iter(stats.values()))
    if len(denoisers) == 1 and stats:
        for part in stats.values():
            prints = fingerprints(part.blocks)
            if part.fingerprints and part.fingerprints.items() <= prints.items():
                return part
        raise StatisticsError(
            f"statistics: of {', '.join(stats)}, and none of them was made from these weights; "
            "calibrate this model"
        )
    if denoiser not in stats and recipe.saliency.needs:
        raise StatisticsError(
            f"statistics: none of the denoiser '{denoiser}', only of "
            f"{', '.join(stats) or 'no denoiser'}; calibrate the whole pipeline"
        )
    return stats.get(denoiser)


def read_module(denoiser: nn.Module) -> Read:
    """Reads a target's weight from a loaded module: a view of it, [C_out, C_in]."""
    return lambda target: as_matrix(denoiser.get_parameter(f"{target.name}.weight").detach())


def read_weights(weights: Weights) -> Read:
    """Reads a target's weight from disk, [C_out, C_in]."""
    return lambda target: as_matrix(weights.read(f"{target.name}.weight"))


def select_in_module(denoiser: nn.Module, recipe: Recipe, stats: Statistics | None) -> Selection:
    """The targets of a loaded module under a recipe; every check before work."""
    targets = discover(denoiser, recipe.auxiliary, _blocks(recipe, stats))
    num_parameters = sum(parameter.numel() for parameter in denoiser.parameters())
    fingerprints = module_fingerprints(denoiser, targets.values())
    return _select(denoiser, targets, fingerprints, num_parameters, recipe, stats)


def select_in_checkpoint(
    folder: Path, weights: Weights, recipe: Recipe, stats: Statistics | None
) -> Selection:
    """The targets of a denoiser's folder, each in its shards with the shape config.json gives."""
    tree = skeleton(folder)
    targets = discover(tree, recipe.auxiliary, _blocks(recipe, stats))
    for target in targets.values():
        entry = weights.entries.get(f"{target.name}.weight")
        if entry is None:
            raise ModelError(
                f"{folder}: tensor '{target.name}.weight' is in config.json's model and "
                "not in the weights; fetch the model again"
            )
        expected = tree.get_parameter(entry.name).shape
        if entry.shape != expected:
            raise ModelError(
                f"{folder}: {entry.name} has shape {list(entry.shape)}, config.json "
                f"gives {list(expected)}; fetch the model again"
            )
        dtype_of(entry)
    fingerprints = weight_fingerprints(weights, targets.values())
    return _select(tree, targets, fingerprints, weights.num_parameters, recipe, stats)


def _select(
    denoiser: nn.Module,
    targets: dict[str, Target],
    fingerprints: Mapping[str, str],
    num_parameters: int,
    recipe: Recipe,
    stats: Statistics | None,
) -> Selection:
    chosen = select(targets, recipe.include, recipe.exclude)
    skipped: dict[str, str] = {}
    if stats is not None:
        _check_weights(chosen, fingerprints, recipe, stats)
    if stats is not None and recipe.saliency.needs:
        skipped = {n: "never called in calibration" for n in chosen if n in stats.never_called}
        chosen = {name: target for name, target in chosen.items() if name not in skipped}
        for target in chosen.values():
            _check_norm(target, stats)
        # Without any input every score is zero, and only the position would choose.
        silent = [name for name in chosen if not stats.column_norm(name).any()]
        skipped |= dict.fromkeys(silent, "its calibration inputs are all zero")
        chosen = {name: target for name, target in chosen.items() if name not in skipped}
        if not chosen:
            raise TargetError(
                f"none of the targets can be scored ({next(iter(skipped.values()))}); "
                "look at the calibration calls"
            )
    for target in chosen.values():
        _check_groups(target, recipe)
    blocks = _blocks(recipe, stats)
    rest = left_out(denoiser, {name: targets[name] for name in (*chosen, *skipped)}, blocks)
    warn_of_outside(denoiser, blocks)
    fingerprint = combined_fingerprint(fingerprints)
    return Selection(chosen, skipped, rest, fingerprint, num_parameters, blocks)


def _blocks(recipe: Recipe, stats: Statistics | None) -> tuple[str, ...]:
    """The globs that say where the blocks are: the recipe's, else those of the calibration.

    Raises RecipeError beside `auxiliary`, which chooses among what is found.
    """
    blocks = recipe.blocks or (() if stats is None else stats.blocks)
    if blocks and recipe.auxiliary:
        raise RecipeError(
            f"--auxiliary and --blocks {' '.join(blocks)} exclude each other: the globs say where "
            "all blocks are; leave --auxiliary out and name the other lists too"
        )
    return blocks


def _check_weights(
    chosen: Collection[str], fingerprints: Mapping[str, str], recipe: Recipe, stats: Statistics
) -> None:
    """Refuse statistics of other weights or of other blocks. Raises StatisticsError."""
    missing = [name for name in chosen if name not in stats.fingerprints]
    if missing and recipe.blocks and recipe.blocks != stats.blocks:
        given = f"--blocks {' '.join(stats.blocks)}" if stats.blocks else "the blocks as found"
        raise StatisticsError(
            f"statistics: made with {given}, and {len(missing)} of {len(chosen)} targets of "
            f"--blocks {' '.join(recipe.blocks)} are not in them, first {missing[0]}; calibrate "
            "with these blocks, or leave them out here"
        )
    others = [name for name in chosen if stats.fingerprints.get(name) != fingerprints[name]]
    if others:
        raise StatisticsError(
            f"statistics: made from other weights ({len(others)} of {len(chosen)} targets "
            f"differ, first {others[0]}); calibrate this model"
        )


def _check_norm(target: Target, stats: Statistics) -> None:
    norm = stats.column_norm(target.name)
    if len(norm) != target.shape[1]:
        raise StatisticsError(
            f"statistics: {target.name} has {len(norm)} input channels, the model has "
            f"{target.shape[1]}; calibrate this model"
        )
    if not norm.isfinite().all():
        raise StatisticsError(
            f"statistics: {target.name} has a norm that is NaN or Inf; calibrate this model"
        )


def _check_groups(target: Target, recipe: Recipe) -> None:
    if isinstance(recipe.granularity, CAG):
        return
    try:
        recipe.granularity.group_shape(*target.shape)
    except RecipeError as error:
        leaf = target.name.removeprefix(f"{target.block}.")
        raise RecipeError(f"{target.name}: {error}; exclude it with --exclude '*.{leaf}'") from None


def make_plan(selection: Selection, read: Read, stats: Statistics | None, recipe: Recipe) -> Plan:
    """Measure G_out of every target, if its weights can be scored, and choose every group."""
    planned = {}
    for name, target in selection.targets.items():
        g_out = None
        if can_score(recipe, stats):
            g_out = heterogeneity(scores_of(target, read(target), stats, recipe))
        planned[name] = _plan_target(target, g_out, recipe)
    return Plan.of(selection, planned, recipe)


def _plan_target(target: Target, g_out: float | None, recipe: Recipe) -> PlannedTarget:
    if isinstance(recipe.granularity, CAG) and g_out is None:
        return PlannedTarget(**asdict(target))
    groups = recipe.groups(g_out or 0.0)
    num_groups, group_size = groups.group_shape(*target.shape)
    num_prune = None  # of a measured allocation, or where the share is found by measuring
    if recipe.allocation == "uniform" and recipe.max_error is None:
        num_prune = num_groups * (group_size - groups.num_keep(group_size, recipe.sparsity))
    return PlannedTarget(
        **asdict(target),
        g_out=g_out,
        granularity=groups.name,
        num_prune=num_prune,
    )


def can_score(recipe: Recipe, stats: object | None) -> bool:
    """Whether the recipe's methods have the statistics that they need."""
    needs = recipe.saliency.needs | recipe.reconstruction.needs
    return stats is not None or ColumnNorm not in needs


def scores_of(target: Target, weight: Tensor, stats: Statistics | None, recipe: Recipe) -> Tensor:
    """The saliency of every weight of a target, float32 [C_out, C_in].

    Raises TargetError where a score is NaN or Inf.
    """
    scores = _by_rows(
        recipe.saliency, weight, norms_for(recipe.saliency, target.name, stats, recipe)
    )
    if not scores.amax().isfinite():
        if weight.isfinite().all():
            reason = f"its {recipe.saliency.name} scores exceed float32; use smaller powers"
        else:
            reason = "its weight holds NaN or Inf; repair the model or exclude it"
        raise TargetError(f"{target.name}: {reason}")
    return scores


def row_chunks(weight: Tensor) -> Iterator[slice]:
    """Rows of a weight that fit a cache together."""
    step = max(1, _CHUNK_WEIGHTS // weight.shape[1])
    yield from (slice(first, first + step) for first in range(0, weight.shape[0], step))


def norms_for(
    method: Saliency | Reconstruction, name: str, stats: Statistics | None, recipe: Recipe
) -> dict[str, Tensor]:
    """The argument `norm` of a method that needs the norms of this target's inputs, float32 [C_in].

    It is empty for a method that does not need them: `needs` decides what reaches a method.
    """
    if ColumnNorm not in method.needs or stats is None:
        return {}
    weights = timestep_weights(recipe.timestep_weighting, stats.num_bins)
    return {"norm": stats.column_norm(name, weights)}


def _by_rows(saliency: Saliency, weight: Tensor, norms: Mapping[str, Tensor]) -> Tensor:
    """The scores, where the saliency allows it a few rows at a time: what it makes on the way
    stays in the cache, and only the result takes memory.
    """
    if weight.device.type != "cpu" or not getattr(saliency, "is_rowwise", False):
        return saliency(weight, **norms)
    scores = torch.from_numpy(np.empty(weight.shape, np.float32))  # numpy asks for huge pages
    for rows in row_chunks(weight):
        scores[rows] = saliency(weight[rows], **norms)
    return scores
