"""How are the items of a batched call taken apart, and put together again?

Names and lengths guess which arguments have a row for each item; `layout.py` finds it out where a
denoiser can be run.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ditprune.calls import Call
from ditprune.errors import ModelError

# Of an argument: its number or name, then keys; all items of a list or a tuple share a path.
Path = tuple[Hashable, ...]

# Positions of tokens: these arguments mostly have no row for each item, whatever their length.
POSITIONS = re.compile(r"(^|_)(ids|rotary|rope|freqs)(_|$)", re.IGNORECASE)
_ITEM = "*"


def nodes(call: Call) -> Iterator[tuple[Path, Any]]:
    """Every tensor, and every list of tensors, among the arguments, with its path."""

    def walk(path: Path, value: Any) -> Iterator[tuple[Path, Any]]:
        if isinstance(value, Tensor):
            yield path, value
        elif isinstance(value, Mapping):
            for key, item in value.items():
                yield from walk((*path, key), item)
        elif type(value) in (list, tuple):
            if _is_list(value):
                yield path, value
            for item in value:
                yield from walk((*path, _ITEM), item)

    for name, value in (*enumerate(call.args), *call.kwargs.items()):
        yield from walk((name,), value)


def num_rows(call: Call) -> int:
    """How many rows the sample has; it is a tensor, or a list with a tensor for each row."""
    sample = call.sample()
    lists = (node for _, node in nodes(call) if isinstance(node, list))
    rows = next((node for node in lists if any(row is sample for row in node)), None)
    return len(rows) if rows is not None else sample.shape[0] if sample.ndim else 1


def as_long(call: Call, count: int) -> frozenset[Path]:
    """The arguments as long as the rows."""
    return frozenset(path for path, node in nodes(call) if _length(node) == count)


def guessed(call: Call) -> frozenset[Path]:
    """The arguments that seem to have rows: as long as the sample, and no positions by name."""
    paths = as_long(call, num_rows(call))
    return frozenset(path for path in paths if not POSITIONS.search(str(path[0])))


def take_item(call: Call, row: int, batch_size: int) -> Call:
    """One item of a batched call: its row, or its rows if guidance stacks several batches."""
    count = num_rows(call)
    if count % batch_size:
        raise ModelError(
            f"the denoiser was called with {count} rows for {batch_size} images; "
            "expected a multiple; sample with --batch-size 1"
        )
    return take_rows(call, range(row, count, batch_size))


def take_rows(call: Call, chosen: Sequence[int], with_rows: frozenset[Path] | None = None) -> Call:
    """The call with these rows alone, of the arguments with rows."""
    with_rows = guessed(call) if with_rows is None else with_rows
    rows, count = list(chosen), num_rows(call)

    def take(path: Path, value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: take((*path, key), item) for key, item in value.items()}
        has_rows = path in with_rows and _length(value) == count
        if isinstance(value, Tensor):
            return value[torch.tensor(rows, device=value.device)] if has_rows else value
        if has_rows:
            return [value[row] for row in rows]
        if type(value) in (list, tuple):
            return type(value)(take((*path, _ITEM), item) for item in value)
        return value

    args = tuple(take((number,), value) for number, value in enumerate(call.args))
    kwargs = {name: take((name,), value) for name, value in call.kwargs.items()}
    return Call(args, kwargs, call.place, call.denoiser)


def merge_calls(calls: Sequence[Call], with_rows: frozenset[Path] | None = None) -> list[Call]:
    """One call with all rows if everything else agrees, otherwise the calls as they are."""
    first = calls[0]
    counts = {num_rows(call) for call in calls}
    shapes = {(len(call.args), tuple(call.kwargs)) for call in calls}
    if len(shapes) > 1 or (with_rows is None and len(counts) > 1):
        return list(calls)
    paths = guessed(first) if with_rows is None else with_rows
    numbers = range(len(first.args))
    try:
        args = tuple(_merge((i,), [call.args[i] for call in calls], paths) for i in numbers)
        kwargs = {n: _merge((n,), [call.kwargs[n] for call in calls], paths) for n in first.kwargs}
    except _DifferError:
        return list(calls)
    return [Call(args, kwargs, first.place, first.denoiser)]


class _DifferError(Exception):
    """Two values have no rows and differ, so that their calls cannot be merged."""


def _merge(path: Path, values: Sequence[Any], with_rows: frozenset[Path]) -> Any:
    """Merge one argument of several calls: rows are concatenated, the rest must be equal."""
    first = values[0]
    is_alike = all(type(value) is type(first) for value in values)
    if is_alike and path in with_rows and isinstance(first, Tensor):
        if (
            len({value.shape[1:] for value in values})
            == len({value.dtype for value in values})
            == 1
        ):
            return torch.cat(list(values))
    elif is_alike and path in with_rows:
        return [row for value in values for row in value]
    elif is_alike and type(first) in (list, tuple):
        if len({len(value) for value in values}) == 1:
            columns = zip(*values, strict=True)
            return type(first)(_merge((*path, _ITEM), column, with_rows) for column in columns)
    elif is_alike and isinstance(first, Mapping) and _share_keys(values):
        return {key: _merge((*path, key), [v[key] for v in values], with_rows) for key in first}
    if all(_same(value, first) for value in values):
        return first
    raise _DifferError


def _share_keys(values: Sequence[Mapping[str, Any]]) -> bool:
    return all(value.keys() == values[0].keys() for value in values)


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.shape == b.shape and a.dtype == b.dtype and bool((a == b).all())
    if type(a) in (list, tuple) and type(a) is type(b):
        return len(a) == len(b) and all(map(_same, a, b))
    return type(a) is type(b) and bool(a == b)


def _length(node: Any) -> int:
    """Of a list of tensors, or of a tensor's first axis; -1 for all else."""
    if isinstance(node, Tensor):
        return len(node) if node.ndim else -1
    return len(node) if _is_list(node) else -1


def _is_list(value: Any) -> bool:
    """A list with a tensor for each row, which some denoisers take for rows of unlike lengths."""
    return isinstance(value, list) and bool(value) and all(isinstance(v, Tensor) for v in value)


def to_placement(call: Call, device: torch.device | str, dtype: torch.dtype) -> Call:
    """The call with its tensors on a device, and those in the sample's dtype in another dtype.

    Timesteps and other vectors keep their precision: 999 is not a bfloat16.
    """
    sample = call.sample()
    likes = (sample, *(leaf for leaf in call.leaves() if isinstance(leaf, Tensor)))
    sample_dtype = next((leaf.dtype for leaf in likes if _is_wide(leaf)), None)

    def move(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        changes = leaf.dtype == sample_dtype and _is_wide(leaf)
        return leaf.to(device, dtype if changes else None)

    return call.map(move)


def _is_wide(leaf: Tensor) -> bool:
    """Whether it is floating and more than one number for each item."""
    return leaf.is_floating_point() and leaf.ndim > 1
