"""What are the Grams of the targets' inputs? Collected at once, or stage by stage in less memory.

With packages, each stage sees inputs as the targets before it leave them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from torch import Tensor, nn

from ditprune.calibration.observe import collect_grams, stages
from ditprune.calls import Call
from ditprune.errors import StatisticsError
from ditprune.method.recipe import Recipe
from ditprune.method.statistics.column_norm import timestep_weights
from ditprune.method.statistics.gram import Gram, finish_gram
from ditprune.progress import Progress
from ditprune.pruning.update.swap import replaced
from ditprune.targets.discover import Target

# A Gram whose squares are all smaller has lost bits, or all of them.
_SMALLEST_SQUARE = 2.0**-100


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
        self._states: dict[str, Gram] = {}

    def of(self, name: str, done: Mapping[str, Tensor] | None = None) -> Tensor | None:
        """XᵀX of one target's inputs, float32; None where the recipe needs no Grams.

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
        return _checked(name, finish_gram(state))

    def _collect(self, names: Sequence[str]) -> None:
        total = len(self._calls)

        def counted() -> Iterator[Call]:
            for number, call in enumerate(self._calls, start=1):
                yield call
                self._progress(
                    f"collecting Grams {self._stage + 1}/{len(self._stages)}", number, total
                )

        self._states = collect_grams(self._denoiser, counted(), names, self._weights)


def _checked(name: str, gram_II: Tensor) -> Tensor:
    """The Gram. Raises StatisticsError where float32 does not hold its squares."""
    largest = float(gram_II.diagonal().max())
    if 0 < largest < _SMALLEST_SQUARE:
        raise StatisticsError(
            f"{name}: the squares of its calibration inputs are at most {largest:.1g}, and float32 "
            "rounds such to 0; exclude it, or scale what enters it"
        )
    return gram_II
