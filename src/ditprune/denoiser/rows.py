"""How are the items of a batched call taken apart, and put together again?"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ditprune.calls import Call, map_leaves
from ditprune.errors import ModelError

# Positions of tokens: these arguments have no row for each item, whatever their length.
_POSITIONS = re.compile(r"(^|_)(ids|rotary|rope|freqs)(_|$)", re.IGNORECASE)


def num_rows(call: Call) -> int:
    """How many rows the sample has; it is a tensor, or a list with a tensor for each row."""
    arguments = [*call.args, *call.kwargs.values()]
    first = next((v for v in arguments if isinstance(v, Tensor) or _is_list(v)), None)
    return len(first) if isinstance(first, list) else call.sample().shape[0]


def take_item(call: Call, row: int, batch_size: int) -> Call:
    """One item of a batched call: its row, or its rows if guidance stacks several batches."""
    count = num_rows(call)
    if count % batch_size:
        raise ModelError(
            f"the denoiser was called with {count} rows for {batch_size} images; "
            "expected a multiple; sample with --batch-size 1"
        )
    return take_rows(call, range(row, count, batch_size))


def take_rows(call: Call, chosen: Sequence[int]) -> Call:
    """The call with these rows alone."""
    rows, count = list(chosen), num_rows(call)

    def take(leaf: Any) -> Any:
        return leaf[torch.tensor(rows, device=leaf.device)] if _has_rows(leaf, count) else leaf

    def take_from(value: Any) -> Any:
        if _is_list(value) and len(value) == count:
            return [value[row] for row in rows]
        return map_leaves(take, value)

    kwargs = {
        name: value if _POSITIONS.search(name) else take_from(value)
        for name, value in call.kwargs.items()
    }
    args = tuple(take_from(value) for value in call.args)
    return Call(args, kwargs, call.place, call.denoiser)


def _has_rows(leaf: Any, count: int) -> bool:
    """Whether an argument has one row for each row of the sample."""
    return isinstance(leaf, Tensor) and leaf.ndim > 0 and leaf.shape[0] == count


def _is_list(value: Any) -> bool:
    """A list with a tensor for each row, which some denoisers take for rows of unlike lengths."""
    return isinstance(value, list) and bool(value) and all(isinstance(v, Tensor) for v in value)


def merge_calls(calls: Sequence[Call]) -> list[Call]:
    """One call with all rows if everything else agrees, otherwise the calls as they are."""
    first = calls[0]
    counts = {num_rows(call) for call in calls}
    shapes = {(len(call.args), tuple(call.kwargs)) for call in calls}
    if len(counts) > 1 or len(shapes) > 1:
        return list(calls)
    try:
        args = tuple(
            _merge(values, num_rows(first)) for values in zip(*(c.args for c in calls), strict=True)
        )
        kwargs = {
            name: _merge(
                [call.kwargs[name] for call in calls],
                None if _POSITIONS.search(name) else num_rows(first),
            )
            for name in first.kwargs
        }
    except _DifferError:
        return list(calls)
    return [Call(args, kwargs, first.place, first.denoiser)]


class _DifferError(Exception):
    """Two values have no rows and differ, so that their calls cannot be merged."""


def _merge(values: Sequence[Any], count: int | None) -> Any:
    """Merge one argument of several calls: rows are concatenated, the rest must be equal."""
    first = values[0]
    if isinstance(first, Tensor):
        if count is not None and all(
            _has_rows(value, count) and value.shape[1:] == first.shape[1:] for value in values
        ):
            return torch.cat(list(values))
    elif all(_is_list(value) and len(value) == count for value in values):
        return [row for value in values for row in value]
    elif isinstance(first, (list, tuple)) and all(
        type(value) is type(first) and len(value) == len(first) for value in values
    ):
        return type(first)(_merge(column, count) for column in zip(*values, strict=True))
    elif isinstance(first, dict) and all(
        isinstance(value, dict) and value.keys() == first.keys() for value in values
    ):
        return {key: _merge([value[key] for value in values], count) for key in first}
    if all(_same(value, first) for value in values):
        return first
    raise _DifferError


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.shape == b.shape and a.dtype == b.dtype and bool((a == b).all())
    return type(a) is type(b) and a == b


def to_placement(call: Call, device: torch.device | str, dtype: torch.dtype) -> Call:
    """The call with its tensors on a device, and those in the sample's dtype in another dtype.

    Timesteps and other vectors keep their precision: 999 is not a bfloat16.
    """
    sample_dtype = call.sample().dtype

    def move(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        changes = leaf.dtype == sample_dtype and leaf.is_floating_point() and leaf.ndim > 1
        return leaf.to(device, dtype if changes else None)

    return call.map(move)
