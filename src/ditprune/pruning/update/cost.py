"""What updating weights takes, before it begins: arithmetic by stage, and memory.

Counted from shapes: one calibration call runs on the meta device, where arithmetic is counted and
nothing is computed. Selection and transfers are not counted, so it is a matter of magnitude.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ditprune.calibration.grams import gram_bytes, stages
from ditprune.calls import Call
from ditprune.denoiser.replay import run_call
from ditprune.denoiser.rows import num_rows
from ditprune.denoiser.tokens import counting_tokens
from ditprune.errors import ModelError
from ditprune.method.recipe import Recipe
from ditprune.method.reconstruction.admm import ADMM
from ditprune.pruning.update.budgets import LEVELS
from ditprune.pruning.update.update import NUM_MEASURING_ROWS, gram_limit
from ditprune.targets.discover import Target

_FLOAT = 4
_SIDE, _NUM_PRODUCTS = 1024, 8
_BACKWARD = 2  # times the arithmetic of a forward pass


@dataclass(frozen=True)
class CallCost:
    """What one row of a denoiser call is.

    Args:
        num_operations: floating-point operations of a forward pass, a product and a sum being two.
        num_tokens: by target, tokens that reach it.
    """

    num_operations: float
    num_tokens: Mapping[str, float]


@dataclass(frozen=True)
class Cost:
    """Of a recipe.

    Args:
        num_operations: by stage.
        num_passes: over the calibration calls, for Grams.
        peak_bytes: of weights, Grams and what training keeps, without activations.
    """

    num_operations: Mapping[str, float]
    num_passes: int
    peak_bytes: int


def call_cost(skeleton: nn.Module, targets: Mapping[str, Target], call: Call) -> CallCost:
    """Of one row of a call, on a denoiser without weights.

    Raises ModelError where its forward looks at numbers.
    """
    rows, layers = num_rows(call), {name: skeleton.get_submodule(name) for name in targets}
    counter = FlopCounterMode(display=False)
    try:
        with counting_tokens(layers) as counts, counter:
            run_call(skeleton, call.map(_without_data))
    except Exception as error:  # a class raises what it likes where it wants to see numbers
        raise ModelError(
            f"{type(skeleton).__name__} cannot run without numbers ({error!r}), so what updating "
            "takes is not known before"
        ) from None
    num_tokens = {name: sum(own) / rows for name, own in counts.items()}
    return CallCost(counter.get_total_flops() / rows, num_tokens)


def measured_rate(device: str = "cpu") -> float:
    """Operations a second of float32 matrix products on this device, the best of some."""
    left, right = torch.rand(2, _SIDE, _SIDE, device=device)
    best = 0.0
    for _ in range(_NUM_PRODUCTS):
        begin = time.perf_counter()
        (left @ right).sum().item()
        best = max(best, 2.0 * _SIDE**3 / (time.perf_counter() - begin))
    return best


def _without_data(leaf: Any) -> Any:
    return leaf.to("meta") if isinstance(leaf, Tensor) else leaf


def cost(
    targets: Mapping[str, Target], recipe: Recipe, one: CallCost, num_rows: int,
    num_parameters: int, max_gram_bytes: int | None = None,
) -> Cost:  # fmt: skip
    """What a recipe takes with so many rows of calibration calls.

    Raises RecipeError for `max_gram_bytes` where it collects no Grams.
    """
    measures, trains = recipe.allocation in ("sensitivity", "proxy"), recipe.refinement is not None
    cut = stages(targets, recipe.packages, gram_limit(recipe, max_gram_bytes))
    passes = len(cut) * (2 if measures and len(cut) > 1 else 1) if recipe.needs_grams else 0
    once = sum(_operations(target, recipe) for target in targets.values())
    work = {
        "Grams": passes * num_rows * one.num_operations
        + (passes / len(cut)) * num_rows * _gram_operations(targets, one),
        "budgets": _budget_operations(len(targets), once, recipe, one),
        "layers": once * (2 if recipe.mask == "refinement" else 1),
        "refinement": _training_operations(recipe, one, num_rows),
    }
    num_weights = sum(target.num_weights for target in targets.values())
    largest = max(sum(gram_bytes(targets[name]) for name in names) for names in cut)
    copies = _copies(recipe)
    peak = _FLOAT * num_parameters * (2 if trains else 1) + copies * num_weights
    return Cost(
        {name: value for name, value in work.items() if value},
        passes,
        peak + (largest if recipe.needs_grams else 0),
    )


def _copies(recipe: Recipe) -> int:
    """Bytes for each target weight beside the denoiser's own: results with their masks, and in
    training gradients, Adam's two means, the weights before and the masks as numbers.
    """
    results = (_FLOAT + 1) * (2 if recipe.mask == "refinement" else 1)
    return results + (5 * _FLOAT if recipe.refinement is not None else 0)


def _operations(target: Target, recipe: Recipe) -> float:
    """Of one reconstruction: products with the Gram, its factor and its inverse."""
    if not recipe.reconstruction.needs:
        return 0.0
    num_out, num_in = target.shape
    product = 2.0 * num_out * num_in**2
    method = recipe.reconstruction
    if isinstance(method, ADMM):
        return num_in**3 + product * (method.num_steps + method.num_support_steps + 4)
    return num_in**3 + 1.5 * product


def _gram_operations(targets: Mapping[str, Target], one: CallCost) -> float:
    return sum(2.0 * one.num_tokens[name] * t.shape[1] ** 2 for name, t in targets.items())


def _budget_operations(num_targets: int, once: float, recipe: Recipe, one: CallCost) -> float:
    rows = NUM_MEASURING_ROWS * one.num_operations
    if recipe.allocation == "sensitivity":
        return len(LEVELS) * (once + num_targets * rows)
    return len(LEVELS) * once + (1 + _BACKWARD) * rows if recipe.allocation == "proxy" else 0.0


def _training_operations(recipe: Recipe, one: CallCost, num_rows: int) -> float:
    if recipe.refinement is None:
        return 0.0
    rows = recipe.refinement.num_steps * min(recipe.refinement.batch_size, num_rows)
    return rows * (2 + _BACKWARD) * one.num_operations
