"""All targets of a loaded denoiser together: budgets, then each layer, then the whole."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from ditprune.calls import NUM_BINS, Call
from ditprune.checkpoints.statistics_file import Statistics
from ditprune.errors import RecipeError, StatisticsError
from ditprune.method.recipe import Recipe
from ditprune.method.reconstruction.layer import LayerResult
from ditprune.progress import Progress
from ditprune.pruning.update import budgets
from ditprune.pruning.update.distill import Refinement, rate_for
from ditprune.pruning.update.gradients import check_gradients, outside_inference
from ditprune.pruning.update.grams import Grams
from ditprune.pruning.update.layers import Layer, prepare, update_at
from ditprune.pruning.update.swap import matrix_of, replaced
from ditprune.pruning.update.thinning import Thinning, thinning
from ditprune.targets.discover import Target

DEFAULT_GRAM_BYTES = 4_000_000_000


@dataclass(frozen=True, eq=False)
class TargetUpdate:
    """What becomes of one target.

    Args:
        weight: new, float32 [C_out, C_in], zero where it is removed.
        keep: True stays.
        layer: the target as it was, and its groups.
        sparsity: the share it was to lose; None under N:M.
        damping: of its reconstruction, against a unit diagonal.
    """

    weight: Tensor
    keep: Tensor
    layer: Layer
    sparsity: float | None
    damping: float


def update_targets(
    denoiser: nn.Module,
    targets: Mapping[str, Target],
    stats: Statistics | None,
    recipe: Recipe,
    calls: Sequence[Call],
    progress: Progress,
    max_gram_bytes: int | None = None,
    costs: Mapping[str, Sequence[float]] | None = None,
) -> dict[str, TargetUpdate]:
    """New weights for every target; the denoiser itself is left as it was.

    Grams of all targets are collected at once where they fit `max_gram_bytes`, else stage by
    stage with a pass over the calls for each, twice where budgets are measured. With packages,
    each begins a stage.

    Args:
        calls: calibration calls on the denoiser's device.
        max_gram_bytes: None is 4 GB.
        costs: of the recipe's allocation, where they are measured already.

    Raises:
        RecipeError, StatisticsError, ModelError.
    """
    if recipe.needs_calls:
        check_has_calls(calls)
    layers, grams = prepare_all(denoiser, targets, stats, recipe, calls, progress, max_gram_bytes)
    if costs is None:
        costs = budgets.costs_of(denoiser, layers, grams.of, calls, recipe, progress)
    after = budgets.shares(layers, costs, recipe)
    before = None
    if recipe.mask == "refinement":
        before = budgets.shares(layers, costs, _first_part(recipe))
    updates, first_updates = reconstructed(layers, grams, recipe, after, before, progress)
    if recipe.refinement is None:
        return updates
    thin = None if before is None else thinning(layers, recipe, before, after)
    return _refined(denoiser, updates, first_updates, thin, calls, recipe, progress)


def prepare_all(
    denoiser: nn.Module, targets: Mapping[str, Target], stats: Statistics | None, recipe: Recipe,
    calls: Sequence[Call], progress: Progress, max_gram_bytes: int | None,
) -> tuple[dict[str, Layer], Grams]:  # fmt: skip
    """Every layer before anything is removed, and the Grams of their inputs when asked for."""
    if needs_gradients(recipe):
        check_gradients(denoiser, targets, calls)
    limit = DEFAULT_GRAM_BYTES if max_gram_bytes is None else max_gram_bytes
    with torch.no_grad():
        layers = {
            name: prepare(target, partial(matrix_of, denoiser, name), stats, recipe)
            for name, target in targets.items()
        }
    num_bins = NUM_BINS if stats is None else stats.num_bins
    return layers, Grams(denoiser, targets, calls, recipe, limit, progress, num_bins)


def needs_gradients(recipe: Recipe) -> bool:
    """Whether a recipe runs the denoiser backwards."""
    return recipe.refinement is not None or recipe.allocation == "proxy"


def check_has_calls(calls: Sequence[Call]) -> None:
    """Refuse calls that are not there, or whose sample is not finite, before the work.

    Raises RecipeError and StatisticsError.
    """
    if not calls:
        raise RecipeError(
            "this recipe runs the denoiser on calibration calls and none were given; pass batches "
            "(on the command line --calibration-set)"
        )
    for number, call in enumerate(calls):
        sample = call.sample()
        if not sample.isfinite().all():
            raise StatisticsError(
                f"calibration calls: the sample of call {number} of {len(calls)} holds NaN or Inf; "
                "leave the call out, or sample in float32 or bfloat16"
            )


def check_needs_calls(recipes: Iterable[Recipe], given: str) -> None:
    """Refuse calls, named as they were `given`, where no recipe has a use for any.

    Raises RecipeError.
    """
    if not any(recipe.needs_calls for recipe in recipes):
        raise RecipeError(
            f"{given}: this recipe updates no weights and measures no budgets; leave it out, or "
            "ask for a reconstruction, a measured allocation, --max-error or the preset best"
        )


def check_needs_grams(recipes: Iterable[Recipe]) -> None:
    """Refuse a limit for Grams where no recipe collects any. Raises RecipeError."""
    if not any(recipe.needs_grams for recipe in recipes):
        raise RecipeError(
            "--gram-memory (max_gram_bytes): this recipe collects no Grams; leave it out, or ask "
            "for a reconstruction or --allocation proxy"
        )


def reconstructed(
    layers: Mapping[str, Layer], grams: Grams, recipe: Recipe,
    after: Mapping[str, float | None], before: Mapping[str, float | None] | None,
    progress: Progress,
) -> tuple[dict[str, TargetUpdate], dict[str, TargetUpdate]]:  # fmt: skip
    """Every layer's update at its final share, and at the share it has before refinement."""
    updates: dict[str, TargetUpdate] = {}
    first_updates: dict[str, TargetUpdate] = updates if before is None else {}
    for name, layer in layers.items():
        update = update_at(layer, grams.of(name, _weights(updates)), recipe)
        updates[name] = _target_update(layer, update(after[name]), after[name])
        if before is not None:
            first_updates[name] = _target_update(layer, update(before[name]), before[name])
        progress("reconstructing", len(updates), len(layers))
    return updates, first_updates


def _target_update(layer: Layer, done: LayerResult, share: float | None) -> TargetUpdate:
    return TargetUpdate(done.weight, done.keep, layer, share, done.damping)


def _first_part(recipe: Recipe) -> Recipe:
    """The recipe without what the refinement removes."""
    assert recipe.refinement is not None
    assert recipe.sparsity is not None
    return replace(recipe, sparsity=recipe.sparsity * (1 - recipe.refinement.share_held_back))


def _refined(
    denoiser: nn.Module, updates: Mapping[str, TargetUpdate],
    first_updates: Mapping[str, TargetUpdate],
    thin: Thinning | None, calls: Sequence[Call], recipe: Recipe, progress: Progress,
) -> dict[str, TargetUpdate]:  # fmt: skip
    """What gradient steps on all kept weights together make of `begin`; `found` where that is
    better on the rows kept aside.
    """
    settings = recipe.refinement
    assert settings is not None
    blocks = list(dict.fromkeys(update.layer.target.block for update in updates.values()))
    settled = {name: (update.weight, update.keep) for name, update in updates.items()}
    with torch.inference_mode(False):
        refinement = Refinement(denoiser, list(updates), blocks, outside_inference(calls), settings)
        with replaced(denoiser, _weights(updates)):
            before = refinement.error()
        with replaced(denoiser, _weights(first_updates)):
            keep = {name: update.keep for name, update in first_updates.items()}
            keep = refinement.train_(keep, rate_for(before, settings), thin, settled, progress)
            if not refinement.error() < before:
                return dict(updates)
            refined = {name: matrix_of(denoiser, name).float().clone() for name in updates}
    if refinement.unreached:
        warnings.warn(
            f"the refinement's gradients never reached {len(refinement.unreached)} of "
            f"{len(updates)} layers, which keep what their reconstruction gave (first "
            f"{refinement.unreached[0]})",
            stacklevel=2,
        )
    return {
        name: replace(
            update, weight=refined[name], keep=keep[name],
            sparsity=_share(keep[name]) if thin and thin.is_joint else update.sparsity,
        )
        for name, update in updates.items()
    }  # fmt: skip


def _weights(updates: Mapping[str, TargetUpdate]) -> dict[str, Tensor]:
    return {name: update.weight for name, update in updates.items()}


def _share(keep: Tensor) -> float:
    """The share that a mask removes."""
    return (keep.numel() - int(keep.sum())) / keep.numel()
