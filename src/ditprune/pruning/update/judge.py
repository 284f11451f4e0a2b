"""Which rows of the calibration calls is a denoiser judged on, and how far is it from the dense?"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise

import torch
from torch import nn

from ditprune.calls import Call
from ditprune.denoiser.layout import RowLayout
from ditprune.denoiser.replay import Prediction, predicted, relative_error, run_call
from ditprune.denoiser.rows import num_rows
from ditprune.errors import ModelError, RecipeError

NUM_MEASURING_ROWS = 64  # of calibration, on which budgets and shares are measured
_MEASURED_TOGETHER = 8
_SHARE_ASIDE = 8  # one row in eight is kept aside
_MOST_ASIDE = 64


class Judge:
    """Compares a denoiser's predictions for some calls with those that it makes now.

    Raises ModelError where these hold NaN or Inf, or are all zero.
    """

    def __init__(self, denoiser: nn.Module, calls: Sequence[Call]) -> None:
        self._calls = calls
        self._dense = [_predict(denoiser, call) for call in calls]
        tensors = [tensor for given in self._dense for _, tensor in given]
        if not all(tensor.isfinite().all() for tensor in tensors):
            raise ModelError(
                "the dense denoiser predicts NaN or Inf for calibration calls, so no error can be "
                "measured; look at the calls, or run it in float32"
            )
        if not any(tensor.any() for tensor in tensors):
            raise ModelError(
                "the dense denoiser predicts zeros for all calibration calls, so no relative error "
                "can be measured; look at its weights: is it trained?"
            )

    @property
    def num_rows(self) -> int:
        """Rows of all calls together."""
        return sum(num_rows(call) for call in self._calls)

    def error(self, denoiser: nn.Module) -> float:
        """What `measured` gives. Raises ModelError where that is NaN or Inf."""
        error = self.measured(denoiser)
        if not math.isfinite(error):
            raise ModelError(
                "the pruned denoiser predicts NaN or Inf for calibration calls, so no error can "
                "be measured; run it in float32 or bfloat16, or ask for less sparsity"
            )
        return error

    def measured(self, denoiser: nn.Module) -> float:
        """mean‖ε − ε_dense‖² / mean‖ε_dense‖² over the calls, as `ditprune evaluate` tells it."""
        return relative_error(
            (_predict(denoiser, call), dense)
            for call, dense in zip(self._calls, self._dense, strict=True)
        )


def some_rows(
    denoiser: nn.Module, calls: Sequence[Call], count: int = NUM_MEASURING_ROWS
) -> list[Call]:
    """So many rows, spread over all of the calls; all rows where there are no more.

    Each is drawn from a run of rows, for rows may come in turns, as with a condition and without.
    """
    layout = RowLayout(denoiser, calls)
    places = _places(layout, calls)
    chosen = sorted(_drawn(places, count))
    return _together(layout, [layout.take(calls[i], [row]) for i, row in chosen])


def keep_aside(denoiser: nn.Module, calls: Sequence[Call]) -> tuple[list[Call], list[Call]]:
    """The calls without some rows, and these rows: one in eight, at most 64, spread over all.

    Raises RecipeError for fewer than two rows.
    """
    layout = RowLayout(denoiser, calls)
    places = _places(layout, calls)
    if len(places) < 2:
        raise RecipeError(
            "--max-error is measured on rows of calibration calls, some of them kept aside: "
            f"expected at least 2 rows, {len(places)} given; pass more with --calibration-set"
        )
    chosen = _drawn(places, min(_MOST_ASIDE, max(1, len(places) // _SHARE_ASIDE)))
    rows = [layout.take(calls[i], [row]) for i, row in sorted(chosen)]
    return list(_without(layout, calls, chosen)), _together(layout, rows)


def _drawn(places: Sequence[tuple[int, int]], count: int) -> set[tuple[int, int]]:
    """One of each run of places, at random: spread over the calls, and in step with nothing."""
    generator = torch.Generator().manual_seed(0)
    bounds = [i * len(places) // count for i in range(count + 1)]
    return {
        places[int(torch.randint(first, after, (), generator=generator))]
        for first, after in pairwise(bounds)
        if first < after
    }


def _without(
    layout: RowLayout, calls: Sequence[Call], aside: set[tuple[int, int]]
) -> Iterator[Call]:
    for i, call in enumerate(calls):
        count = layout.num_rows(call)
        rest = [row for row in range(count) if (i, row) not in aside]
        if len(rest) == count:
            yield call
        elif rest:
            yield layout.take(call, rest)


def _places(layout: RowLayout, calls: Sequence[Call]) -> list[tuple[int, int]]:
    """(number of the call, row) of every row."""
    return [(i, row) for i, call in enumerate(calls) for row in range(layout.num_rows(call))]


def _together(layout: RowLayout, rows: Sequence[Call]) -> list[Call]:
    """Calls of several rows, where all else about them agrees."""
    firsts = range(0, len(rows), _MEASURED_TOGETHER)
    return [call for i in firsts for call in layout.merged(rows[i : i + _MEASURED_TOGETHER])]


def _predict(denoiser: nn.Module, call: Call) -> Prediction:
    return predicted(run_call(denoiser, call), call)
