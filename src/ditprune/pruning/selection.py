"""Which targets does a run work on, and does everything fit? Every check before work."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from ditprune.checkpoints.skeleton import (
    combined_fingerprint,
    module_fingerprints,
    skeleton,
    weight_fingerprints,
)
from ditprune.checkpoints.statistics_file import Statistics
from ditprune.checkpoints.weights import Weights, dtype_of
from ditprune.errors import DitpruneError, ModelError, RecipeError, StatisticsError, TargetError
from ditprune.method.granularity import CAG
from ditprune.method.recipe import Recipe
from ditprune.targets.coverage import LeftOut, left_out, warn_of_outside
from ditprune.targets.discover import Target, discover, select
from ditprune.targets.writable import no_values, refuse_unwritable


@dataclass(frozen=True)
class Selection:
    """What a run works on: targets by name, what stays dense and why, and whose weights.

    Args:
        fingerprint: of the weights of all targets; empty where they have no values.
        blocks: the globs that said which modules are the blocks, of the recipe or the statistics.
    """

    targets: Mapping[str, Target]
    skipped: Mapping[str, str]
    left_out: Mapping[str, LeftOut]
    fingerprint: str
    num_parameters: int
    blocks: tuple[str, ...] = ()


def select_in_module(
    denoiser: nn.Module, recipe: Recipe, stats: Statistics | None, is_plan: bool = False
) -> Selection:
    """The targets of a loaded module under a recipe; every check before work.

    Args:
        is_plan: nothing will be written, and weights without values (meta device) will do.
    """
    blocks = _blocks(recipe, stats)
    targets = discover(denoiser, recipe.auxiliary, blocks)
    if not is_plan:
        refuse_unwritable(denoiser, targets, blocks)
    num_parameters = sum(parameter.numel() for parameter in denoiser.parameters())
    has_values = not any(no_values(denoiser.get_submodule(name)) for name in targets)
    fingerprints = module_fingerprints(denoiser, targets.values()) if has_values else {}
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
    size = sum(parameter.numel() for parameter in tree.parameters())
    return _select(tree, targets, fingerprints, size, recipe, stats)


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
    if stats is not None and fingerprints:
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
    fingerprint = combined_fingerprint(fingerprints) if fingerprints else ""
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
            try:
                prints = fingerprints(part.blocks)
            except DitpruneError:  # the globs of another denoiser match nothing here
                continue
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
