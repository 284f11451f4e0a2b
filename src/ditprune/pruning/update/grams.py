"""What are the Grams of the targets' inputs? Collected at once, or stage by stage in less memory.

With packages, each stage sees inputs as the targets before it leave them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from ditprune.calibration.observe import collect_grams, stages, weight_at
from ditprune.calls import Call
from ditprune.denoiser.capture import counting_tokens
from ditprune.denoiser.replay import run_call
from ditprune.denoiser.rows import num_rows
from ditprune.errors import StatisticsError
from ditprune.method.recipe import Recipe
from ditprune.method.statistics.column_norm import timestep_weights
from ditprune.method.statistics.gram import Gram, finish_gram
from ditprune.progress import Progress
from ditprune.pruning.update.judge import some_rows
from ditprune.pruning.update.output_grams import OutputGram, collect_output_grams
from ditprune.pruning.update.swap import replaced
from ditprune.targets.discover import Target

# A Gram whose squares are all smaller has lost bits, or all of them.
_SMALLEST_SQUARE = 2.0**-100


# With the output's gradients, if there are as many: rows, tokens of a layer, and tokens for each
# channel that enters it. Measured with 16 tokens a row: 512 rows are enough, 256 are not.
_ENOUGH_ROWS, _ENOUGH_TOKENS, _TOKENS_OF_CHANNEL = 64, 8192, 3
_SMALLEST_ROW = 1e-8  # of the mean


@dataclass(frozen=True, eq=False)
class LayerGram:
    """What a layer's error ‖(W − W')X‖² is measured with.

    Args:
        products: XᵀX of its inputs, float32 [C_in, C_in]; of weighted tokens where the recipe's
            objective is the denoiser's output.
        rows: how much each output channel counts, float32 [C_out], mean one; None is alike.
    """

    products: Tensor
    rows: Tensor | None = None


class Grams:
    """The Grams of a stage at a time; of all, once, where they fit."""

    def __init__(
        self, denoiser: nn.Module, targets: Mapping[str, Target], calls: Sequence[Call],
        recipe: Recipe, max_bytes: int, progress: Progress, num_bins: int,
    ) -> None:  # fmt: skip
        self._denoiser, self._calls = denoiser, calls
        self._weights = timestep_weights(recipe.timestep_weighting, num_bins)
        self._is_needed = recipe.needs_grams
        self._progress = progress
        self._in_steps = recipe.packages > 1
        self._stages = stages(targets, recipe.packages, max_bytes)
        self._stage_of = {name: i for i, names in enumerate(self._stages) for name in names}
        self._stage = -1
        self._states: dict[str, Gram | OutputGram] = {}
        self._sees_output = recipe.objective == "output"
        if self._sees_output and self._is_needed:
            self._calls = rows_for_output(denoiser, targets, calls)

    def of(self, name: str, done: Mapping[str, Tensor] | None = None) -> LayerGram | None:
        """Of one target's inputs; None where the recipe needs no Grams.

        Args:
            done: new weights of the targets that were updated before; with packages, the inputs of
                the next are as these leave them.
        """
        if not self._is_needed:
            return None
        if self._stage_of[name] != self._stage:
            self._stage = self._stage_of[name]
            self._states = {}
            with replaced(self._denoiser, done if done and self._in_steps else {}):
                self._collect(self._stages[self._stage])
        state = self._states.get(name)
        if state is None:
            raise StatisticsError(
                f"{name}: no calibration call reaches it, so it cannot be reconstructed; exclude "
                "it, or calibrate with the same calls"
            )
        return finished(name, state)

    def _collect(self, names: Sequence[str]) -> None:
        total = len(self._calls)

        def counted() -> Iterator[Call]:
            for number, call in enumerate(self._calls, start=1):
                yield call
                self._progress(
                    f"collecting Grams {self._stage + 1}/{len(self._stages)}", number, total
                )

        def weight_of(call: Call) -> float:
            return 1.0 if self._weights is None else weight_at(self._weights, call.place)

        self._states = {}
        if self._sees_output:
            seen = collect_output_grams(self._denoiser, counted(), names, weight_of)
            self._states |= {name: state for name, state in seen.items() if is_reached(state)}
        if unreached := [name for name in names if name not in self._states]:
            self._states |= collect_grams(self._denoiser, counted(), unreached, self._weights)


def rows_for_output(
    denoiser: nn.Module, targets: Mapping[str, Target], calls: Sequence[Call]
) -> list[Call]:
    """The rows of these calls on which gradients of the output are taken."""
    with counting_tokens({name: denoiser.get_submodule(name) for name in targets}) as counts:
        run_call(denoiser, calls[0])
    per_row = {name: sum(tokens) / num_rows(calls[0]) for name, tokens in counts.items()}
    return some_rows(denoiser, calls, enough_rows(targets, per_row))


def enough_rows(targets: Mapping[str, Target], tokens_per_row: Mapping[str, float]) -> int:
    """Rows of calls that Grams of weighted tokens take: more tell little more."""
    per_row = {name: tokens for name, tokens in tokens_per_row.items() if tokens > 1}
    by_channels = [
        math.ceil(_TOKENS_OF_CHANNEL * targets[name].shape[1] / tokens)
        for name, tokens in per_row.items()
    ]
    most = max(per_row.values(), default=1.0)
    return max([_ENOUGH_ROWS, math.ceil(_ENOUGH_TOKENS / most), *by_channels])


def is_reached(state: OutputGram) -> bool:
    """Whether gradients lead to the layer."""
    return float(state.gram.sum_products.diagonal().max()) > _SMALLEST_SQUARE


def finished(name: str, state: Gram | OutputGram) -> LayerGram:
    """From the sums of a layer. Raises StatisticsError where float32 does not hold its squares."""
    if isinstance(state, Gram):
        return LayerGram(_checked(name, finish_gram(state)))
    rows = state.sum_squares / state.sum_squares.mean()
    products = _checked(name, finish_gram(state.gram))
    return LayerGram(products, rows.clamp_min(_SMALLEST_ROW).float())


def _checked(name: str, gram_II: Tensor) -> Tensor:
    """The Gram. Raises StatisticsError where float32 does not hold its squares."""
    largest = float(gram_II.diagonal().max())
    if 0 < largest < _SMALLEST_SQUARE:
        raise StatisticsError(
            f"{name}: the squares of its calibration inputs are at most {largest:.1g}, and float32 "
            "rounds such to 0; exclude it, or scale what enters it"
        )
    return gram_II
