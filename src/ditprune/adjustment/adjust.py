"""All targets of a loaded denoiser together: budgets, then each layer, then the whole."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ditprune.adjustment import budgets
from ditprune.adjustment.layers import Layer, adjust_layer, prepare
from ditprune.adjustment.refine import refine_
from ditprune.calibration.grams import collect_grams, stages
from ditprune.calls import Call
from ditprune.errors import RecipeError, StatisticsError
from ditprune.progress import Report
from ditprune.recipe import Recipe
from ditprune.statistics import gram
from ditprune.statistics.collected import NUM_BINS, Statistics
from ditprune.statistics.gram import Gram
from ditprune.statistics.weighting import weights as timestep_weights
from ditprune.targets.discover import Target
from ditprune.targets.matrix import as_matrix

DEFAULT_GRAM_BYTES = 4_000_000_000
_NUM_MEASURING_ROWS = 64  # of calibration, on which budgets are measured


@dataclass(frozen=True, eq=False)
class Adjustment:
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


def adjust(
    denoiser: nn.Module,
    targets: Mapping[str, Target],
    stats: Statistics | None,
    recipe: Recipe,
    threshold: float | None,
    calls: Sequence[Call],
    report: Report,
    max_gram_bytes: int = DEFAULT_GRAM_BYTES,
) -> dict[str, Adjustment]:
    """New weights for every target; the denoiser itself is left as it was.

    Grams of all targets are collected at once where they fit `max_gram_bytes`, else stage by
    stage with a pass over the calls for each, twice where budgets are measured.

    Args:
        threshold: of CAG, resolved.
        calls: calibration calls on the denoiser's device.

    Raises:
        RecipeError, StatisticsError, ModelError.
    """
    if recipe.needs_calls and not calls:
        raise RecipeError(
            "this recipe adjusts weights to the calibration calls and none were given; pass "
            "batches (on the command line --calibration-set)"
        )
    with torch.no_grad():
        layers = {
            name: prepare(target, _weight(denoiser, name), stats, recipe, threshold)
            for name, target in targets.items()
        }
    num_bins = NUM_BINS if stats is None else stats.num_bins
    grams = _Grams(denoiser, targets, calls, recipe, max_gram_bytes, report, num_bins)
    shares = _shares(denoiser, layers, grams, calls, recipe, report)
    found: dict[str, Adjustment] = {}
    for name, layer in layers.items():
        done = adjust_layer(layer, grams.of(name), recipe, shares[name])
        found[name] = Adjustment(done.weight, done.keep, layer, shares[name], done.damping)
        report("reconstructing", len(found), len(layers))
    if recipe.refinement is None:
        return found
    return _refined(denoiser, found, calls, recipe, report)


class _Grams:
    """The Grams of a stage at a time; of all, once, where they fit."""

    def __init__(
        self, denoiser: nn.Module, targets: Mapping[str, Target], calls: Sequence[Call],
        recipe: Recipe, max_bytes: int, report: Report, num_bins: int,
    ) -> None:  # fmt: skip
        self._denoiser, self._targets, self._calls = denoiser, targets, calls
        self._weights = timestep_weights(recipe.timestep_weighting, num_bins)
        self._is_needed = bool(recipe.reconstruction.needs) or recipe.allocation == "proxy"
        self._report = report
        self._stages = stages(targets, max_bytes)
        self._stage_of = {name: i for i, names in enumerate(self._stages) for name in names}
        self._stage = -1
        self._states: dict[str, Gram] = {}

    def of(self, name: str) -> Tensor:
        """XᵀX of one target's inputs, float32; the unit matrix where nobody needs it."""
        if not self._is_needed:
            return torch.eye(self._targets[name].shape[1])
        if self._stage_of[name] != self._stage:
            self._stage = self._stage_of[name]
            self._states = {}
            self._collect(self._stages[self._stage])
        if name not in self._states:
            raise StatisticsError(
                f"{name}: no calibration call reaches it, so it cannot be reconstructed; exclude "
                "it, or calibrate with the same calls"
            )
        return gram.finish(self._states[name])

    def _collect(self, names: Sequence[str]) -> None:
        total = len(self._calls)

        def counted() -> Iterator[Call]:
            for number, call in enumerate(self._calls, start=1):
                yield call
                self._report(
                    f"collecting Grams {self._stage + 1}/{len(self._stages)}", number, total
                )

        self._states = collect_grams(self._denoiser, counted(), names, self._weights)


def _shares(
    denoiser: nn.Module, layers: Mapping[str, Layer], grams: _Grams, calls: Sequence[Call],
    recipe: Recipe, report: Report,
) -> dict[str, float | None]:  # fmt: skip
    """The share that every layer loses, by the recipe's allocation."""
    if recipe.allocation == "uniform":
        return budgets.uniform(layers, recipe)
    if recipe.allocation == "owl":
        return budgets.by_owl(layers, recipe)
    some = _some_rows(calls)
    if recipe.allocation == "proxy":
        gains = budgets.output_gains(denoiser, list(layers), some)
        costs = budgets.proxy_costs(layers, grams.of, gains, recipe, report)
    else:
        with torch.no_grad():
            costs = budgets.measure_costs(denoiser, layers, grams.of, some, recipe, report)
    return budgets.by_curves(layers, costs, recipe)


def _some_rows(calls: Sequence[Call]) -> list[Call]:
    """Calls spread over all of them, with about as many rows as budgets are measured on."""
    rows = [call.sample().shape[0] for call in calls]
    every = max(1, round(sum(rows) / _NUM_MEASURING_ROWS))
    return list(calls[::every])


def _refined(
    denoiser: nn.Module, found: Mapping[str, Adjustment], calls: Sequence[Call], recipe: Recipe,
    report: Report,
) -> dict[str, Adjustment]:  # fmt: skip
    """The adjustments after gradient steps on all kept weights together."""
    assert recipe.refinement is not None
    names = list(found)
    blocks = list(dict.fromkeys(one.layer.target.block for one in found.values()))
    dense = copy.deepcopy(denoiser)
    with replaced(denoiser, {name: one.weight for name, one in found.items()}):
        keep = {name: one.keep for name, one in found.items()}
        refine_(denoiser, dense, keep, blocks, calls, recipe.refinement, report)
        refined = {name: _weight(denoiser, name).float().clone() for name in names}
    return {name: replace(one, weight=refined[name]) for name, one in found.items()}


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
