"""How much each layer loses: the recipe's allocation, measured on a loaded denoiser."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from ditprune.calls import Call
from ditprune.checkpoints.statistics_file import Statistics
from ditprune.errors import ModelError
from ditprune.method.allocation import (
    LARGEST_SHARE,
    MEASURED,
    Curve,
    allocate,
    outlier_share,
    sparsities,
)
from ditprune.method.granularity import PerChannel
from ditprune.method.recipe import Recipe
from ditprune.progress import Progress
from ditprune.pruning.update.grams import LayerGram
from ditprune.pruning.update.judge import Judge, some_rows
from ditprune.pruning.update.layers import Layer, errors_of, prepare_layers, update_at
from ditprune.pruning.update.output_grams import output_gains
from ditprune.targets.discover import Target
from ditprune.targets.matrix import as_matrix

# Shares at which a layer's cost is measured; between them its logarithm is interpolated.
LEVELS = (0.2, 0.4, 0.55, 0.68, 0.78, 0.86, 0.92, 0.97)
GramOf = Callable[[str], LayerGram | None]
_NUM_POINTS = 98  # of the curve that the budget is chosen on
_FLOOR = 1e-12


def costs_of(
    denoiser: nn.Module, layers: Mapping[str, Layer], gram_of: GramOf,
    calls: Sequence[Call], recipe: Recipe, progress: Progress,
) -> dict[str, list[float]] | None:  # fmt: skip
    """What every layer's pruning costs at `LEVELS`; None where the allocation measures nothing.

    Raises RecipeError, before anything is measured, for a share that the layers do not allow.
    """
    check_shares(layers, recipe)
    if recipe.allocation == "proxy":
        gains = dict.fromkeys(layers, 1.0)  # a Gram of the output has them already
        if recipe.objective == "layer":
            gains = output_gains(denoiser, list(layers), some_rows(denoiser, calls))
        return proxy_costs(layers, gram_of, gains, recipe, progress)
    if recipe.allocation == "sensitivity":
        with torch.no_grad():
            rows = some_rows(denoiser, calls)
            return measure_costs(denoiser, layers, gram_of, rows, recipe, progress)
    return None


def check_shares(layers: Mapping[str, Layer], recipe: Recipe) -> None:
    """Raises RecipeError for a share that the layers do not allow, where it is measured for."""
    if recipe.allocation in MEASURED and recipe.sparsity is not None:
        by_curves(layers, dict.fromkeys(layers, [0.0] * len(LEVELS)), recipe)


def shares(
    layers: Mapping[str, Layer], costs: Mapping[str, Sequence[float]] | None, recipe: Recipe
) -> dict[str, float | None]:
    """The share that every layer loses under the recipe's total.

    Args:
        costs: from `costs_of`.
    """
    if costs is not None:
        return by_curves(layers, costs, recipe)
    return by_owl(layers, recipe) if recipe.allocation == "owl" else uniform(layers, recipe)


def shares_of_weights(
    targets: Mapping[str, Target], read: Callable[[Target], Tensor], stats: Statistics | None,
    recipe: Recipe,
) -> dict[str, float | None]:  # fmt: skip
    """The share of every target by an allocation that takes weights and statistics alone, which
    are read one at a time; empty where all have the recipe's own.
    """
    if recipe.allocation == "uniform":
        return {}
    return by_owl(prepare_layers(targets, read, stats, recipe), recipe)


def first_part(recipe: Recipe) -> Recipe:
    """The recipe without what its refinement removes."""
    assert recipe.refinement is not None
    assert recipe.sparsity is not None
    return replace(recipe, sparsity=recipe.sparsity * (1 - recipe.refinement.share_held_back))


def total_cost(wanted: Mapping[str, float | None], costs: Mapping[str, Sequence[float]]) -> float:
    """What these shares cost together: relative errors are squares, which add where the layers'
    errors are independent.
    """
    return sum(_cost_at(share, costs[name]) for name, share in wanted.items() if share)


def uniform(layers: Mapping[str, Layer], recipe: Recipe) -> dict[str, float | None]:
    """The recipe's own share for every layer."""
    return dict.fromkeys(layers, recipe.sparsity)


def by_owl(layers: Mapping[str, Layer], recipe: Recipe) -> dict[str, float | None]:
    """More for layers with few outliers (arXiv 2310.05175), the total that of uniform shares."""
    outliers = {name: outlier_share(layer.scores()) for name, layer in layers.items()}
    sizes = {name: layer.target.num_weights for name, layer in layers.items()}
    assert recipe.sparsity is not None
    wanted = sparsities(outliers, sizes, recipe.sparsity)
    curves = {}
    for name, layer in layers.items():
        share, size = wanted[name], layer.target.num_weights
        # Cheap up to the wanted share and dear beyond: the exact total is met next to it.
        points = [0.0, share, 1.0]
        curves[name] = Curve(size, _step(layer), points, [0.0, share * size * 1e-3, size])
    return _as_shares(layers, allocate(curves, _total(layers, recipe)))


def by_curves(
    layers: Mapping[str, Layer], costs: Mapping[str, Sequence[float]], recipe: Recipe
) -> dict[str, float | None]:
    """The cheapest shares under the total, by each layer's cost at `LEVELS`."""
    points = [LARGEST_SHARE * i / _NUM_POINTS for i in range(_NUM_POINTS + 1)]
    curves = {
        name: Curve(
            layer.target.num_weights,
            _step(layer),
            points,
            [_cost_at(point, costs[name]) for point in points],
        )
        for name, layer in layers.items()
    }
    return _as_shares(layers, allocate(curves, _total(layers, recipe)))


def measure_costs(
    denoiser: nn.Module,
    layers: Mapping[str, Layer],
    gram_of: GramOf,
    calls: Sequence[Call],
    recipe: Recipe,
    progress: Progress,
) -> dict[str, list[float]]:
    """The relative error of the denoiser's output with one layer pruned alone, at `LEVELS`.

    The denoiser is left as it was.
    """
    judge = Judge(denoiser, calls)
    costs: dict[str, list[float]] = {}
    for number, (name, layer) in enumerate(layers.items(), start=1):
        weight = as_matrix(denoiser.get_parameter(f"{name}.weight")).detach()
        before = weight.clone()
        dense_layer = replace(layer, read=partial(torch.clone, before))
        try:
            update = update_at(dense_layer, gram_of(name), recipe)
            costs[name] = []
            for level in LEVELS:
                weight.copy_(update(level).weight)
                costs[name].append(judge.error(denoiser))
        finally:
            weight.copy_(before)
        progress("measuring sensitivity", number, len(layers))
    return costs


def proxy_costs(
    layers: Mapping[str, Layer], gram_of: GramOf,
    gains: Mapping[str, float], recipe: Recipe, progress: Progress,
) -> dict[str, list[float]]:  # fmt: skip
    """The same without end-to-end passes: the layer's own error times how much the output
    follows it (the mean square of the output's gradient, from `output_gains`).
    """
    costs, unknown = {}, []
    for number, (name, layer) in enumerate(layers.items(), start=1):
        gram = gram_of(name)
        if recipe.objective == "output" and (gram is None or gram.rows is None):
            unknown.append(name)
        costs[name] = [gains[name] * error for error in errors_of(layer, gram, recipe, LEVELS)]
        check_costs(name, costs[name])
        progress("estimating sensitivity", number, len(layers))
    return with_middle(costs, unknown)


def check_costs(name: str, costs: Sequence[float]) -> None:
    """Raises ModelError for what is no cost."""
    if not all(math.isfinite(cost) for cost in costs):
        raise ModelError(
            f"{name}: what its pruning costs is NaN or Inf (a gradient or an error overflows); "
            "run the denoiser in float32 or bfloat16, or pass --allocation owl"
        )


def with_middle(costs: Mapping[str, list[float]], unknown: Sequence[str]) -> dict[str, list[float]]:
    """Give layers that no gradient reaches, whose gain is unknown, the middle one of the rest."""
    largest = sorted(curve[-1] for name, curve in costs.items() if name not in unknown)
    middle = largest[len(largest) // 2] if largest else 1.0
    return {
        name: [cost * middle / (curve[-1] or 1.0) for cost in curve] if name in unknown else curve
        for name, curve in costs.items()
    }


def _step(layer: Layer) -> int:
    return layer.target.shape[0] if isinstance(layer.groups, PerChannel) else 1


def _total(layers: Mapping[str, Layer], recipe: Recipe) -> int:
    return sum(layer.num_pruned(recipe.sparsity) for layer in layers.values())


def _as_shares(layers: Mapping[str, Layer], counts: Mapping[str, int]) -> dict[str, float | None]:
    """Shares that give these counts exactly."""
    shares: dict[str, float | None] = {}
    for name, layer in layers.items():
        shares[name] = counts[name] / layer.target.num_weights
        assert layer.num_pruned(shares[name]) == counts[name], name
    return shares


def _cost_at(share: float, costs: Sequence[float]) -> float:
    """Between levels the logarithm is straight; below the first the cost falls as a cube."""
    rising = [max(costs[: i + 1]) + _FLOOR for i in range(len(costs))]
    if share <= LEVELS[0]:
        return rising[0] * (share / LEVELS[0]) ** 3
    for (a, low), (b, high) in zip(
        zip(LEVELS, rising, strict=True), zip(LEVELS[1:], rising[1:], strict=True), strict=False
    ):
        if share <= b:
            where = (share - a) / (b - a)
            return math.exp((1 - where) * math.log(low) + where * math.log(high))
    return rising[-1] * math.exp((share - LEVELS[-1]) * 50)
