"""Items of batched denoiser calls: take one out by its rows, lay several together again."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ditprune.calls import Call, map_leaves
from ditprune.errors import ModelError

# Arguments without a row for each item, however long they are: positions of tokens.
_POSITIONS = re.compile(r"(^|_)(ids|rotary|rope|freqs)(_|$)", re.IGNORECASE)


def num_rows(call: Call) -> int:
    """How many rows the sample has: of a tensor, or of a list with a tensor for each row."""
    arguments = [*call.args, *call.kwargs.values()]
    first = next((value for value in arguments if _is_tensor(value) or _is_list(value)), None)
    return len(first) if isinstance(first, list) else call.sample().shape[0]


def take_item(call: Call, row: int, batch_size: int) -> Call:
    """One item of a batched call: its row, or its rows where guidance stacks several batches."""
    count = num_rows(call)
    if count % batch_size:
        raise ModelError(
            f"the denoiser was called with {count} rows for {batch_size} images; "
            "expected a multiple; sample with --batch-size 1"
        )
    rows = list(range(row, count, batch_size))

    def take(leaf: Any) -> Any:
        return leaf[torch.tensor(rows, device=leaf.device)] if has_rows(leaf, count) else leaf

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


def has_rows(leaf: Any, count: int) -> bool:
    """Whether an argument has one row for each row of the sample."""
    return isinstance(leaf, Tensor) and leaf.ndim > 0 and leaf.shape[0] == count


def _is_tensor(value: Any) -> bool:
    return isinstance(value, Tensor)


def _is_list(value: Any) -> bool:
    """A list with a tensor for each row, as some denoisers take for rows of unlike lengths."""
    return isinstance(value, list) and bool(value) and all(_is_tensor(one) for one in value)


def merge_calls(calls: Sequence[Call]) -> list[Call]:
    """One call of all rows where everything else agrees, else the calls as they are."""
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
    """Values that neither have rows nor are the same."""


def _merge(values: Sequence[Any], count: int | None) -> Any:
    """One value for all: rows below each other, anything else only if it is the same."""
    first = values[0]
    if isinstance(first, Tensor):
        if count is not None and all(
            has_rows(one, count) and one.shape[1:] == first.shape[1:] for one in values
        ):
            return torch.cat(list(values))
    elif all(_is_list(one) and len(one) == count for one in values):
        return [row for one in values for row in one]
    elif isinstance(first, (list, tuple)) and all(
        type(one) is type(first) and len(one) == len(first) for one in values
    ):
        return type(first)(_merge(column, count) for column in zip(*values, strict=True))
    elif isinstance(first, dict) and all(
        isinstance(one, dict) and one.keys() == first.keys() for one in values
    ):
        return {key: _merge([one[key] for one in values], count) for key in first}
    if all(_same(one, first) for one in values):
        return first
    raise _DifferError


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.shape == b.shape and a.dtype == b.dtype and bool((a == b).all())
    return type(a) is type(b) and a == b


def to_placement(call: Call, device: torch.device | str, dtype: torch.dtype) -> Call:
    """The call with its tensors on a device, and in the denoiser's numbers where it had its own.

    Timesteps and other vectors keep their precision: 999 is not a bfloat16.
    """
    own = call.sample().dtype
    return call.map(_mover(device, own, dtype))


def _mover(
    device: torch.device | str, own: torch.dtype, dtype: torch.dtype
) -> Callable[[Any], Any]:
    def move(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        is_numbers = leaf.dtype == own and leaf.is_floating_point() and leaf.ndim > 1
        return leaf.to(device, dtype if is_numbers else None)

    return move
