"""How is a denoiser in memory shrunk?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from ditprune.calls import Call
from ditprune.checkpoints.shrunk.form import Form, mark_, shrunk_form
from ditprune.method.columns import Removal
from ditprune.method.low_rank import LowRankFit
from ditprune.progress import Progress
from ditprune.shrinking.choice import pools
from ditprune.shrinking.in_place import cut_
from ditprune.shrinking.modulation import ModulationFitter, shrink_modulation_
from ditprune.shrinking.moments import Demand, collect, output_square
from ditprune.shrinking.outcome import ShrinkOutcome, shrink_outcome
from ditprune.shrinking.plan import ShrinkPlan
from ditprune.shrinking.prices import Prices
from ditprune.shrinking.readers import Fitted, fitted, put_, read_layer
from ditprune.shrinking.recipe import ShrinkRecipe
from ditprune.shrinking.shapes import clustered
from ditprune.shrinking.survey import (
    block_paths,
    fitter_of,
    numbers_after,
    orders_in,
    plan_of,
    units_of,
)
from ditprune.shrinking.units import Cut, UnitGroup, Whole

MAX_MOMENT_BYTES = 4_000_000_000
_FLOAT = 4


@dataclass(frozen=True, eq=False)
class Smaller:
    """What a denoiser will become; it is not changed yet."""

    denoiser: nn.Module
    call: Call
    recipe: ShrinkRecipe
    plan: ShrinkPlan
    counts: Mapping[str, int]
    cut: Cut
    new: Mapping[str, Fitted]
    whole: Sequence[Whole]
    fits: Mapping[str, LowRankFit]
    notes: tuple[str, ...]


def shrink_denoiser_(
    denoiser: nn.Module, calls: Sequence[Call], recipe: ShrinkRecipe, progress: Progress,
    max_bytes: int = MAX_MOMENT_BYTES,
) -> ShrinkOutcome:  # fmt: skip
    """Shrink a denoiser in place.

    Raises DitpruneError with the denoiser as it was.
    """
    return make_smaller_(smaller_of(denoiser, calls, recipe, progress, max_bytes))


def smaller_of(
    denoiser: nn.Module, calls: Sequence[Call], recipe: ShrinkRecipe, progress: Progress,
    max_bytes: int = MAX_MOMENT_BYTES,
) -> Smaller:  # fmt: skip
    """Work out what a denoiser becomes. Raises DitpruneError."""
    with torch.inference_mode(False):
        blocks = block_paths(denoiser, recipe)
        groups, whole = units_of(denoiser, blocks, calls[0], recipe)
        prices = Prices.of(denoiser, calls[0])
        stream = DemandStream(denoiser, groups, calls, max_bytes, progress)
        scale = output_square(denoiser, calls)
        orders: dict[str, Sequence[Removal]] = {}
        for demands in stream():
            orders |= orders_in(denoiser, groups, demands, prices, recipe)
        fits, notes = _modulation_fits(denoiser, blocks, calls, recipe, progress)
        plan = plan_of(denoiser, groups, orders, prices, scale, recipe)
        plan = replace(plan, saved=prices.saved(fits))
        counts = clustered(plan, plan.counts(recipe), recipe)
        cut = plan.cut(counts)
        new: dict[str, Fitted] = {}
        for demands in stream():
            new |= fitted(read_layer(denoiser), cut, demands)
    return Smaller(denoiser, calls[0], recipe, plan, counts, cut, new, whole, fits, notes)


def make_smaller_(ready: Smaller) -> ShrinkOutcome:
    """Make a denoiser what was worked out."""
    denoiser, cut, fits = ready.denoiser, ready.cut, ready.fits
    numbers = numbers_after(denoiser, cut)
    put_(denoiser, ready.new)
    cut_(denoiser, cut)
    shrink_modulation_(denoiser, fits)
    form = Form(numbers, {}, {name: fit.rank for name, fit in fits.items()})
    mark_(denoiser, shrunk_form(denoiser).then(form))
    after = Prices.of(denoiser, ready.call).size()
    return shrink_outcome(
        ready.plan, ready.counts, cut, ready.recipe, after, ready.whole, fits, ready.notes
    )


class DemandStream:
    """What is known of layers that read units, whole pools together, as many as memory holds.

    What one stage holds is kept, so that it is not worked out twice.
    """

    def __init__(
        self, denoiser: nn.Module, groups: Mapping[str, UnitGroup], calls: Sequence[Call],
        max_bytes: int, progress: Progress,
    ) -> None:  # fmt: skip
        self._denoiser, self._calls, self._progress = denoiser, calls, progress
        self._stages = _stages(denoiser, groups, max_bytes)
        self._only: dict[str, Demand] | None = None

    def __call__(self) -> Iterator[Mapping[str, Demand]]:
        if self._only is not None:
            yield self._only
            return
        for number, names in enumerate(self._stages, start=1):
            what = f"following the output {number}/{len(self._stages)}"
            followed = collect(self._denoiser, names, self._counted(what))
            if len(self._stages) == 1:
                self._only = followed
            yield followed

    def _counted(self, what: str) -> Iterator[Call]:
        for number, call in enumerate(self._calls, start=1):
            yield call
            self._progress(what, number, len(self._calls))


def _stages(
    denoiser: nn.Module, groups: Mapping[str, UnitGroup], max_bytes: int
) -> list[list[str]]:
    """The layers that read units, in parts whose moments fit; one pool at least in each."""
    stages: list[list[str]] = []
    left = 0
    for pool in pools(groups):
        layers = sorted({c.layer for name in pool for c in groups[name].consumers})
        widths = [denoiser.get_parameter(f"{name}.weight").shape[1] for name in layers]
        size = sum(_FLOAT * (width + 1) ** 2 for width in widths)
        if not stages or size > left:
            stages.append([])
            left = max_bytes
        stages[-1] += layers
        left -= size
    return stages


def _modulation_fits(
    denoiser: nn.Module, blocks: Sequence[str], calls: Sequence[Call], recipe: ShrinkRecipe,
    progress: Progress,
) -> tuple[dict[str, LowRankFit], tuple[str, ...]]:  # fmt: skip
    """Two matrices for each modulation layer whose rank is lowered, and what else to know."""
    fitter = fitter_of(denoiser, blocks, calls, recipe.modulation)
    if not isinstance(fitter, ModulationFitter):
        return {}, () if fitter is None else (fitter,)
    fits: dict[str, LowRankFit] = {}
    notes: list[str] = []
    for number, path in enumerate(blocks, start=1):
        done = fitter.fit(path)
        fits |= done.fits
        notes += [f"{name} keeps its rank: {reason}" for name, reason in done.whole.items()]
        progress("lowering the rank of modulation", number, len(blocks))
    return fits, tuple(notes)
