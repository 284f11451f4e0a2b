"""Which arguments of a denoiser's calls have a row for each item? One row is run to find out.

Names and lengths only guess: ids may be one for all rows or one for each, and a table that all
rows share may be as long as they are. So one row is run alone, and must give what the whole call
gives for it. Where no guess does, calls are kept as they were given.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ditprune.calls import SAMPLE_NAMES, Call
from ditprune.denoiser.replay import Prediction, predicted, run_call
from ditprune.denoiser.rows import (
    Path,
    as_long,
    guessed,
    merge_calls,
    nodes,
    num_rows,
    take_rows,
)
from ditprune.errors import ModelError, is_out_of_memory

_MOST_TRIES = 24
_MOST_OTHERS = 2  # arguments in which a guess by names and lengths may be wrong
# ‖difference‖² / ‖row‖² of rounding, in float32 and in half precision.
_CLOSE, _CLOSE_IN_HALF = 1e-5, 1e-3
_CONDITIONS = ("cond", "context", "control", "encoder", "mask", "ref", "text", "prompt")


@dataclass(frozen=True)
class _Known:
    """What is known of calls of one form.

    Args:
        rows: paths of the arguments with a row for each item; None if calls stay as they are.
        sample: the path of the floating tensor being denoised; None if there is none.
    """

    rows: frozenset[Path] | None
    sample: Path | None


class RowLayout:
    """How the calls of a denoiser are taken apart into rows, and put together again.

    Args:
        calls: of each form the one with most rows is run, and its last row alone.

    Raises ModelError for a denoiser without a floating output, or that writes into its arguments.
    """

    def __init__(self, denoiser: nn.Module, calls: Sequence[Call]) -> None:
        forms: dict[Hashable, list[Call]] = {}
        for call in calls:
            forms.setdefault(form_of(call), []).append(call)
        self._known = {form: _learn(denoiser, likes) for form, likes in forms.items()}

    def num_rows(self, call: Call) -> int:
        """How many rows a call has; 1 if it is not taken apart."""
        return 1 if self._known[form_of(call)].rows is None else num_rows(call)

    def take(self, call: Call, rows: Sequence[int]) -> Call:
        """The call with these rows alone."""
        known = self._known[form_of(call)]
        return call if known.rows is None else take_rows(call, rows, known.rows)

    def rows_of(self, call: Call) -> list[Call]:
        """Every row of a call as a call of its own."""
        return [self.take(call, [row]) for row in range(self.num_rows(call))]

    def merged(self, calls: Sequence[Call]) -> list[Call]:
        """One call with all rows where all else agrees, otherwise the calls as they are."""
        rows = self._known[form_of(calls[0])].rows
        if rows is None or len({form_of(call) for call in calls}) > 1:
            return list(calls)
        return merge_calls(calls, rows)

    def sample(self, call: Call) -> Tensor | None:
        """The floating tensor being denoised; None where no argument is one."""
        path = self._known[form_of(call)].sample
        return next((node for where, node in nodes(call) if where == path), None)


def form_of(call: Call) -> Hashable:
    """Calls of one form have the same arguments; their lengths may differ."""
    return len(call.args), tuple(call.kwargs), frozenset(path for path, _ in nodes(call))


def _learn(denoiser: nn.Module, calls: Sequence[Call]) -> _Known:
    largest = max(calls, key=num_rows)
    given = _run_unchanged(denoiser, largest)
    sample, count = _sample_path(denoiser, largest, given), num_rows(largest)
    if count > 1:
        last = count - 1
        tries = ((rows, [take_rows(largest, [last], rows)]) for rows in _guesses(largest))
        return _Known(_first_right(denoiser, tries, _row_of(given, count, last)), sample)
    if len(calls) == 1:
        return _Known(guessed(largest), sample)
    pair = [calls[0], calls[-1]]
    last_given = predicted(run_call(denoiser, pair[1]), pair[1])
    tries = ((rows, merge_calls(pair, rows)) for rows in _guesses(largest))
    return _Known(_first_right(denoiser, tries, [last_given], num_together=2), sample)


def _run_unchanged(denoiser: nn.Module, call: Call) -> Prediction:
    """What a denoiser predicts. Raises ModelError if it writes into a tensor of the call."""
    before = [(path, node, node.clone()) for path, node in nodes(call) if isinstance(node, Tensor)]
    given = predicted(run_call(denoiser, call), call)
    for path, tensor, copy in before:
        if not torch.equal(tensor, copy) and not (tensor != tensor).any():
            raise ModelError(
                f"{type(denoiser).__name__}: its forward writes into its argument {path[0]!r}, so "
                "that no call can be run twice; let it work on a copy (x = x.clone()), and record "
                "or make the calls again"
            )
    return given


def _guesses(call: Call) -> Iterator[frozenset[Path]]:
    """Which arguments may have rows, the likeliest first."""
    every = as_long(call, num_rows(call))
    seen = set()
    for num_others in range(_MOST_OTHERS + 1):
        for base in (guessed(call), every):
            for others in itertools.combinations(sorted(every, key=repr), num_others):
                guess = base ^ frozenset(others)
                if guess and guess not in seen:
                    seen.add(guess)
                    yield guess


def _first_right(
    denoiser: nn.Module, tries: Iterator[tuple[frozenset[Path], list[Call]]],
    expected: Sequence[Prediction], num_together: int = 1,
) -> frozenset[Path] | None:  # fmt: skip
    """The first guess whose call predicts one of what is expected, for the last of its rows."""
    for rows, calls in itertools.islice(tries, _MOST_TRIES):
        if len(calls) > 1:  # they could not be merged
            continue
        try:
            got = predicted(run_call(denoiser, calls[0]), calls[0])
        except Exception as error:  # a wrong guess may raise anything
            if is_out_of_memory(error):
                raise
            continue
        parts = [got] if num_together == 1 else _row_of(got, num_together, num_together - 1)
        if any(_agree(a, b) for a in parts for b in expected):
            return rows
    return None


def _row_of(given: Prediction, count: int, row: int) -> list[Prediction]:
    """One row of a prediction of `count`: a row of each tensor, or the item of each list."""
    of_tensors: Prediction = []
    of_lists: Prediction = []
    for place in dict.fromkeys(place for place, _ in given):
        tensors = [tensor for where, tensor in given if where == place]
        if all(tensor.ndim and len(tensor) == count for tensor in tensors):
            of_tensors += [(place, tensor[row : row + 1]) for tensor in tensors]
        if len(tensors) == count:
            of_lists.append((place, tensors[row]))
    return [part for part in (of_tensors, of_lists) if part]


def _agree(got: Prediction, expected: Prediction) -> bool:
    """Whether all that was expected is there, up to rounding; what has no rows may be beside."""
    for place in {place for place, _ in expected}:
        pair = [[t for where, t in part if where == place] for part in (got, expected)]
        if len(pair[0]) != len(pair[1]) or not all(map(_is_close, *pair)):
            return False
    return True


def _is_close(got: Tensor, expected: Tensor) -> bool:
    if got.shape != expected.shape:
        return False
    limit = _CLOSE if expected.dtype in (torch.float32, torch.float64) else _CLOSE_IN_HALF
    difference = (got.double() - expected.double()).square().sum()
    return bool(difference <= limit * expected.double().square().sum())


def _sample_path(denoiser: nn.Module, call: Call, given: Prediction) -> Path | None:
    """The floating argument of an output's shape, known names first and conditions last; else one
    of a known name.

    Integers are never mixed, so they are no sample here.
    """
    names, shapes = _argument_names(denoiser), {tensor.shape for _, tensor in given}
    ranks: dict[Path, tuple[int, int]] = {}
    for path, node in nodes(call):
        if isinstance(node, Tensor) and node.is_floating_point() and node.ndim > 1:
            rank = _rank(path, names, node.shape in shapes)
            if rank is not None:
                ranks.setdefault(path, rank)
    return min(ranks, key=lambda path: ranks[path], default=None)


def _rank(path: Path, names: Sequence[str], is_alike: bool) -> tuple[int, int] | None:
    """Lower is likelier to be the sample; None for what is none."""
    first = path[0]
    name = names[first] if isinstance(first, int) and first < len(names) else str(first)
    if name in SAMPLE_NAMES:
        return 0 if is_alike else 2, SAMPLE_NAMES.index(name)
    if not is_alike:
        return None
    return 3 if any(word in name.lower() for word in _CONDITIONS) else 1, 0


def _argument_names(denoiser: nn.Module) -> list[str]:
    try:
        return list(inspect.signature(denoiser.forward).parameters)
    except (TypeError, ValueError):
        return []
