"""Which share stays below an error? Shares are tried on a loaded denoiser, in steps of 1 %.

Where budgets are measured, their curve says which shares to try: with `sensitivity` it adds up to
0.89 to 1.02 of the error on the bundled model, with `proxy` to the error in another unit. A run
decides all the same, as it takes a small part of what the budgets take.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor, nn

from ditprune.calls import Call
from ditprune.errors import RecipeError
from ditprune.method.allocation import MEASURED
from ditprune.method.recipe import Recipe
from ditprune.progress import Progress
from ditprune.pruning.error_bound import ErrorBound
from ditprune.pruning.update import budgets
from ditprune.pruning.update.judge import Judge, some_rows
from ditprune.pruning.update.prepared import Prepared, UpdateInputs, prepare_all
from ditprune.pruning.update.swap import replaced
from ditprune.pruning.update.update import reconstructed

LARGEST_PERCENT = 95
_MOST_GUESSES = 3  # where a curve says little, halving takes over
_HALVINGS = LARGEST_PERCENT.bit_length()


@dataclass(frozen=True)
class Chosen:
    """A recipe with the share that an error allows.

    Args:
        recipe: with `sparsity` in place of `max_error`.
        asked: the `max_error`.
        expected: the relative error at this share, on calibration rows; before a refinement, which
            is kept only where it lowers the error.
        costs: of each layer under a measured allocation, so that they are not measured again.
        prepared: layers and Grams, which serve this share too; None where it was found before.
    """

    recipe: Recipe
    asked: float
    expected: float
    costs: Mapping[str, Sequence[float]] | None = None
    prepared: Prepared | None = field(default=None, compare=False, repr=False)

    def measured(self, judge: Judge, pruned: nn.Module) -> ErrorBound:
        """With the pruned denoiser's error on the rows that a judge of the dense one has."""
        return ErrorBound(self.asked, self.expected, judge.error(pruned), judge.num_rows)

    def to_json(self) -> dict[str, Any]:
        """All but the recipe that was asked for, as plain values."""
        costs = self.costs and {name: list(values) for name, values in self.costs.items()}
        return {"sparsity": self.recipe.sparsity, "expected": self.expected, "costs": costs}

    @classmethod
    def from_json(cls, content: Mapping[str, Any], asked: Recipe) -> Chosen:
        """From `to_json`, and the recipe with a `max_error`."""
        assert asked.max_error is not None
        recipe = replace(asked, sparsity=content["sparsity"], max_error=None)
        return cls(recipe, asked.max_error, content["expected"], content["costs"])


def most_tries(recipe: Recipe) -> int:
    """How often all layers are pruned to find the share, at most; 0 where it is given."""
    if recipe.max_error is None:
        return 0
    return _HALVINGS + (_MOST_GUESSES if recipe.allocation in MEASURED else 0)


def choose_share(inputs: UpdateInputs, recipe: Recipe) -> Chosen:
    """The largest share, in whole percent up to 95, whose error stays below `recipe.max_error`.

    Every share that is tried is carried out on the denoiser, all layers with their budgets and
    reconstruction but without refinement, and measured on 64 of the rows. Each try of a
    reconstruction takes as long as reconstructing for good; there are at most seven, and at most
    ten (three on the bundled model) where measured budgets guide them. The denoiser is
    left as it was.

    Args:
        inputs: with the calls without the rows kept aside.

    Raises:
        RecipeError: 1 % is too much already.
        StatisticsError, ModelError: NaN or Inf in inputs or predictions.
    """
    assert recipe.max_error is not None
    prepared, denoiser = prepare_all(inputs, recipe), inputs.denoiser
    gram_of, progress = prepared.grams.of, inputs.progress
    costs = budgets.costs_of(denoiser, prepared.layers, gram_of, inputs.calls, recipe, progress)
    rows = some_rows(denoiser, inputs.calls)
    tries = _Tries(denoiser, prepared, costs, recipe, rows, progress)
    curve = None if costs is None else tries.curve
    percent, error = largest_below(tries.error, recipe.max_error, curve)
    return Chosen(_at(recipe, percent), recipe.max_error, error, costs, prepared)


def largest_below(
    error_at: Callable[[int], float], bound: float, curve: Callable[[int], float] | None = None
) -> tuple[int, float]:
    """The largest percentage that was tried with an error below `bound`, and this error.

    The next percentage was tried too, and its error is not below; or the first is 95.

    Args:
        curve: rises with the percentage about as the error does, in any unit; it says where to
            look, so that fewer are tried.

    Raises RecipeError where 1 % is not below.
    """
    low, high = 0, LARGEST_PERCENT + 1
    error_low = error_high = math.nan
    percent, num_tries = (low + high) // 2, 0
    while high - low > 1:
        error, num_tries = error_at(percent), num_tries + 1
        if error < bound:
            low, error_low = percent, error
        else:
            high, error_high = percent, error
        cost = curve(percent) if curve is not None and num_tries <= _MOST_GUESSES else 0.0
        percent = (low + high) // 2
        if curve is not None and 0 < cost < math.inf and math.isfinite(error):
            guesses = [p for p in range(low + 1, high) if error / cost * curve(p) < bound]
            percent = max(guesses, default=low + 1)
    if low == 0:
        raise RecipeError(
            f"--max-error {bound:g}: removing 1 % already gives an error of {error_high:.3g}; ask "
            "for more than that, or for a recipe that updates weights, such as --preset best"
        )
    return low, error_low


class _Tries:
    """The error of a recipe at one share after another."""

    def __init__(
        self, denoiser: nn.Module, prepared: Prepared,
        costs: Mapping[str, Sequence[float]] | None, recipe: Recipe, calls: Sequence[Call],
        progress: Progress,
    ) -> None:  # fmt: skip
        self._denoiser, self._prepared = denoiser, prepared
        self._costs, self._recipe, self._progress = costs, recipe, progress
        self._judge = Judge(denoiser, calls)
        self._num_tries = 0

    def error(self, percent: int) -> float:
        """Of the denoiser with every layer at its share of this total; infinite beyond what the
        bounds of the layers allow.
        """
        shares = self._shares(percent)
        if shares is None:
            return math.inf
        self._num_tries += 1
        most = most_tries(self._recipe)
        label = f"try {self._num_tries} of at most {most}, {percent} % of the weights"

        def tell(what: str, done: int, total: int) -> None:
            self._progress(f"{label}: {what}", done, total)

        with replaced(self._denoiser, self._pruned(percent, shares, tell)):
            return self._judge.error(self._denoiser)

    def curve(self, percent: int) -> float:
        """What the measured costs of the layers add up to."""
        shares = self._shares(percent)
        return math.inf if shares is None else budgets.total_cost(shares, self._costs or {})

    def _shares(self, percent: int) -> dict[str, float | None] | None:
        try:
            return budgets.shares(self._prepared.layers, self._costs, _at(self._recipe, percent))
        except RecipeError:  # the bounds of the layers do not allow as much
            return None

    def _pruned(
        self, percent: int, shares: Mapping[str, float | None], progress: Progress
    ) -> dict[str, Tensor]:
        """New weights of all layers, in the denoiser's dtype."""
        recipe = _at(self._recipe, percent)
        updates, _ = reconstructed(self._prepared, recipe, shares, None, progress)
        return {n: u.weight.to(u.layer.read().dtype) for n, u in updates.items()}


def _at(recipe: Recipe, percent: int) -> Recipe:
    """The recipe with this share in place of its `max_error`."""
    return replace(recipe, sparsity=percent / 100, max_error=None)
