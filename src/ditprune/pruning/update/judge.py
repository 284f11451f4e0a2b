"""Which rows of the calibration calls is a denoiser judged on, and how far is it from the dense?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor, nn

from ditprune.calls import Call
from ditprune.denoiser.replay import predicted_noise, relative_error, run_call
from ditprune.denoiser.rows import merge_calls, num_rows, take_rows
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
        if not all(noise.isfinite().all() for noise in self._dense):
            raise ModelError(
                "the dense denoiser predicts NaN or Inf for calibration calls, so no error can be "
                "measured; look at the calls, or run it in float32"
            )
        if not any(noise.any() for noise in self._dense):
            raise ModelError(
                "the dense denoiser predicts zeros for all calibration calls, so no relative error "
                "can be measured; look at its weights: is it trained?"
            )

    @property
    def num_rows(self) -> int:
        """Rows of all calls together."""
        return sum(num_rows(call) for call in self._calls)

    def error(self, denoiser: nn.Module) -> float:
        """mean‖ε − ε_dense‖² / mean‖ε_dense‖² over the calls, as `ditprune evaluate` tells it."""
        return relative_error(
            (_predict(denoiser, call), dense)
            for call, dense in zip(self._calls, self._dense, strict=True)
        )


def some_rows(calls: Sequence[Call]) -> list[Call]:
    """Rows spread over all of the calls, as many as budgets are measured on, few to a call."""
    places = _places(calls)
    every = max(1, len(places) // NUM_MEASURING_ROWS)
    return _together([take_rows(calls[i], [row]) for i, row in places[::every]])


def keep_aside(calls: Sequence[Call]) -> tuple[list[Call], list[Call]]:
    """The calls without some rows, and these rows: one in eight, at most 64, spread over all.

    Raises RecipeError for fewer than two rows.
    """
    places = _places(calls)
    if len(places) < 2:
        raise RecipeError(
            "--max-error is measured on rows of calibration calls, some of them kept aside: "
            f"expected at least 2 rows, {len(places)} given; pass batches (on the command line "
            "--calibration-set)"
        )
    count = min(_MOST_ASIDE, max(1, len(places) // _SHARE_ASIDE))
    aside = {places[(2 * i + 1) * len(places) // (2 * count)] for i in range(count)}
    return (
        list(_without(calls, aside)),
        _together([take_rows(calls[i], [row]) for i, row in sorted(aside)]),
    )


def _without(calls: Sequence[Call], aside: set[tuple[int, int]]) -> Iterator[Call]:
    for i, call in enumerate(calls):
        rest = [row for row in range(num_rows(call)) if (i, row) not in aside]
        if len(rest) == num_rows(call):
            yield call
        elif rest:
            yield take_rows(call, rest)


def _places(calls: Sequence[Call]) -> list[tuple[int, int]]:
    """(number of the call, row) of every row."""
    return [(i, row) for i, call in enumerate(calls) for row in range(num_rows(call))]


def _together(rows: Sequence[Call]) -> list[Call]:
    """Calls of several rows, where all else about them agrees."""
    firsts = range(0, len(rows), _MEASURED_TOGETHER)
    return [call for i in firsts for call in merge_calls(rows[i : i + _MEASURED_TOGETHER])]


def _predict(denoiser: nn.Module, call: Call) -> Tensor:
    return predicted_noise(run_call(denoiser, call), call.sample().shape[1])
