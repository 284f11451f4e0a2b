"""All targets of a loaded denoiser together: budgets, then each layer, then the whole."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from ditprune.calibration.observe import collect_grams, stages
from ditprune.calls import NUM_BINS, Call
from ditprune.checkpoints.statistics_file import Statistics
from ditprune.denoiser.rows import merge_calls, num_rows, take_item
from ditprune.errors import RecipeError, StatisticsError
from ditprune.method.recipe import Recipe
from ditprune.method.statistics.column_norm import timestep_weights
from ditprune.method.statistics.gram import Gram, finish_gram
from ditprune.progress import Progress
from ditprune.pruning.update import budgets
from ditprune.pruning.update.distill import Refinement, rate_for
from ditprune.pruning.update.layers import Layer, prepare, update_layer
from ditprune.pruning.update.thinning import Thinning, thinning
from ditprune.targets.discover import Target
from ditprune.targets.matrix import as_matrix

DEFAULT_GRAM_BYTES = 4_000_000_000
NUM_MEASURING_ROWS = 64  # of calibration, on which budgets are measured
_MEASURED_TOGETHER = 8


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
) -> dict[str, TargetUpdate]:
    """New weights for every target; the denoiser itself is left as it was.

    Grams of all targets are collected at once where they fit `max_gram_bytes`, else stage by
    stage with a pass over the calls for each, twice where budgets are measured. With packages,
    each begins a stage.

    Args:
        calls: calibration calls on the denoiser's device.
        max_gram_bytes: None is 4 GB.

    Raises:
        RecipeError, StatisticsError, ModelError.
    """
    if recipe.needs_calls:
        check_has_calls(calls)
    limit = DEFAULT_GRAM_BYTES if max_gram_bytes is None else max_gram_bytes
    with torch.no_grad():
        layers = {
            name: prepare(target, partial(_weight, denoiser, name), stats, recipe)
            for name, target in targets.items()
        }
    num_bins = NUM_BINS if stats is None else stats.num_bins
    grams = _Grams(denoiser, targets, calls, recipe, limit, progress, num_bins)
    share_out = _sharing(denoiser, layers, grams, calls, recipe, progress)
    after = share_out(recipe)
    before = share_out(_first_part(recipe)) if recipe.mask == "refinement" else None
    updates, first_updates = _reconstructed(layers, grams, recipe, after, before, progress)
    if recipe.refinement is None:
        return updates
    thin = None if before is None else thinning(layers, recipe, before, after)
    return _refined(denoiser, updates, first_updates, thin, calls, recipe, progress)


def check_has_calls(calls: Sequence[Call]) -> None:
    """Refuse a recipe that runs the denoiser where there are no calls. Raises RecipeError."""
    if not calls:
        raise RecipeError(
            "this recipe updates weights to the calibration calls and none were given; pass "
            "batches (on the command line --calibration-set)"
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


def _reconstructed(
    layers: Mapping[str, Layer], grams: _Grams, recipe: Recipe,
    after: Mapping[str, float | None], before: Mapping[str, float | None] | None,
    progress: Progress,
) -> tuple[dict[str, TargetUpdate], dict[str, TargetUpdate]]:  # fmt: skip
    """Every layer's update at its final share, and at the share it has before refinement."""
    updates: dict[str, TargetUpdate] = {}
    first_updates: dict[str, TargetUpdate] = updates if before is None else {}
    for name, layer in layers.items():
        gram_II = grams.of(name, updates)
        updates[name] = _target_update(layer, gram_II, recipe, after[name])
        if before is not None:
            first_updates[name] = _target_update(layer, gram_II, recipe, before[name])
        progress("reconstructing", len(updates), len(layers))
    return updates, first_updates


def _target_update(
    layer: Layer, gram: Tensor | None, recipe: Recipe, share: float | None
) -> TargetUpdate:
    done = update_layer(layer, gram, recipe, share)
    return TargetUpdate(done.weight, done.keep, layer, share, done.damping)


def _first_part(recipe: Recipe) -> Recipe:
    """The recipe without what the refinement removes."""
    assert recipe.refinement is not None
    assert recipe.sparsity is not None
    return replace(recipe, sparsity=recipe.sparsity * (1 - recipe.refinement.share_held_back))


class _Grams:
    """The Grams of a stage at a time; of all, once, where they fit."""

    def __init__(
        self, denoiser: nn.Module, targets: Mapping[str, Target], calls: Sequence[Call],
        recipe: Recipe, max_bytes: int, progress: Progress, num_bins: int,
    ) -> None:  # fmt: skip
        self._denoiser, self._targets, self._calls = denoiser, targets, calls
        self._weights = timestep_weights(recipe.timestep_weighting, num_bins)
        self._is_needed = recipe.needs_grams
        self._progress = progress
        self._in_steps = recipe.packages > 1
        self._stages = stages(targets, recipe.packages, max_bytes)
        self._stage_of = {name: i for i, names in enumerate(self._stages) for name in names}
        self._stage = -1
        self._states: dict[str, Gram] = {}

    def of(self, name: str, done: Mapping[str, TargetUpdate] | None = None) -> Tensor | None:
        """XᵀX of one target's inputs, float32; None where the recipe needs no Grams.

        Args:
            done: targets that were updated before; with packages, the inputs of the next are as
                these leave them.
        """
        if not self._is_needed:
            return None
        if self._stage_of[name] != self._stage:
            self._stage = self._stage_of[name]
            self._states = {}
            weights = _weights(done) if done and self._in_steps else {}
            with replaced(self._denoiser, weights):
                self._collect(self._stages[self._stage])
        if name not in self._states:
            raise StatisticsError(
                f"{name}: no calibration call reaches it, so it cannot be reconstructed; exclude "
                "it, or calibrate with the same calls"
            )
        return finish_gram(self._states[name])

    def _collect(self, names: Sequence[str]) -> None:
        total = len(self._calls)

        def counted() -> Iterator[Call]:
            for number, call in enumerate(self._calls, start=1):
                yield call
                self._progress(
                    f"collecting Grams {self._stage + 1}/{len(self._stages)}", number, total
                )

        self._states = collect_grams(self._denoiser, counted(), names, self._weights)


def _sharing(
    denoiser: nn.Module, layers: Mapping[str, Layer], grams: _Grams, calls: Sequence[Call],
    recipe: Recipe, progress: Progress,
) -> Callable[[Recipe], dict[str, float | None]]:  # fmt: skip
    """What tells the share that every layer loses under a recipe's total; measured once."""
    if recipe.allocation == "uniform":
        return partial(budgets.uniform, layers)
    if recipe.allocation == "owl":
        return partial(budgets.by_owl, layers)
    some = _some_rows(calls)
    if recipe.allocation == "proxy":
        gains = budgets.output_gains(denoiser, list(layers), some)
        costs = budgets.proxy_costs(layers, grams.of, gains, recipe, progress)
    else:
        with torch.no_grad():
            costs = budgets.measure_costs(denoiser, layers, grams.of, some, recipe, progress)
    return partial(budgets.by_curves, layers, costs)


def _some_rows(calls: Sequence[Call]) -> list[Call]:
    """Rows spread over all of the calls, as many as budgets are measured on, few to a call."""
    places = [(call, row) for call in calls for row in range(num_rows(call))]
    every = max(1, len(places) // NUM_MEASURING_ROWS)
    rows = [take_item(call, row, num_rows(call)) for call, row in places[::every]]
    together = range(0, len(rows), _MEASURED_TOGETHER)
    return [call for i in together for call in merge_calls(rows[i : i + _MEASURED_TOGETHER])]


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
    refinement = Refinement(denoiser, copy.deepcopy(denoiser), blocks, calls, settings)
    with replaced(denoiser, _weights(updates)):
        before = refinement.error()
    with replaced(denoiser, _weights(first_updates)):
        keep = {name: update.keep for name, update in first_updates.items()}
        keep = refinement.train_(keep, rate_for(before, settings), thin, progress)
        if not refinement.error() < before:
            return dict(updates)
        refined = {name: _weight(denoiser, name).float().clone() for name in updates}
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


@contextmanager
def replaced(denoiser: nn.Module, weights: Mapping[str, Tensor]) -> Iterator[None]:
    """Other weights for as long as the block runs; the old bits come back."""
    before = {name: _weight(denoiser, name).clone() for name in weights}
    try:
        with torch.no_grad():
            for name, weight in weights.items():
                _weight(denoiser, name).copy_(weight)
        yield
    finally:
        with torch.no_grad():
            for name, weight in before.items():
                _weight(denoiser, name).copy_(weight)


def _weight(denoiser: nn.Module, name: str) -> Tensor:
    """A target's weight as a matrix, a view."""
    return as_matrix(denoiser.get_parameter(f"{name}.weight").detach())
