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


def take_item(call: Call, row: int, batch_size: int) -> Call:
    """One item of a batched call: its row, or its rows where guidance stacks several batches."""
    num_rows = call.sample().shape[0]
    if num_rows % batch_size:
        raise ModelError(
            f"the denoiser was called with {num_rows} rows for {batch_size} images; "
            "expected a multiple; sample with --batch-size 1"
        )
    rows = torch.arange(row, num_rows, batch_size)

    def take(leaf: Any) -> Any:
        return leaf[rows.to(leaf.device)] if has_rows(leaf, num_rows) else leaf

    kwargs = {
        name: value if _POSITIONS.search(name) else map_leaves(take, value)
        for name, value in call.kwargs.items()
    }
    return Call(map_leaves(take, call.args), kwargs, call.place, call.denoiser)


def has_rows(leaf: Any, num_rows: int) -> bool:
    """Whether an argument has one row for each row of the sample."""
    return isinstance(leaf, Tensor) and leaf.ndim > 0 and leaf.shape[0] == num_rows


def merge_calls(calls: Sequence[Call]) -> list[Call]:
    """One call of all rows where everything else agrees, else the calls as they are."""
    if len({len(call.leaves()) for call in calls}) > 1:
        return list(calls)
    columns = list(zip(*(call.leaves() for call in calls), strict=True))
    num_rows = calls[0].sample().shape[0]
    positions = _position_leaves(calls[0])
    merged = []
    for number, leaves in enumerate(columns):
        first = leaves[0]
        is_rows = number not in positions and all(
            has_rows(leaf, num_rows) and leaf.shape[1:] == first.shape[1:] for leaf in leaves
        )
        if is_rows:
            merged.append(torch.cat(leaves))
        elif all(_same(leaf, first) for leaf in leaves):
            merged.append(first)
        else:
            return list(calls)
    values = iter(merged)
    return [calls[0].map(lambda _: next(values))]


def _position_leaves(call: Call) -> set[int]:
    """The numbers, in the order of `Call.leaves`, of the leaves below an argument of positions."""
    found: set[int] = set()
    number = len(Call(call.args).leaves())
    for name, value in call.kwargs.items():
        count = len(Call((), {name: value}).leaves())
        if _POSITIONS.search(name):
            found |= set(range(number, number + count))
        number += count
    return found


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
