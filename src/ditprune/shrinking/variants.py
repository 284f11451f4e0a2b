"""What else can a group be, where the first guess fails on a call?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import nn

from ditprune.shrinking import names
from ditprune.shrinking.layers import numbers_like
from ditprune.shrinking.units import HEADS, UnitGroup, UnitPart
from ditprune.targets.lists import join


def variants_of(group: UnitGroup, module: nn.Module) -> Iterator[UnitGroup]:
    """The other forms that a group can have.

    Args:
        module: that of the group.
    """
    wider, apart = _saying_width(group, module), _side_by_side(group)
    yield from (other for other in (wider, apart) if other is not None)
    if wider is not None and (both := _side_by_side(wider)) is not None:
        yield both


def _saying_width(group: UnitGroup, module: nn.Module) -> UnitGroup | None:
    """The group of an attention that says the width of its heads by the name of its input's."""
    places = group.consumers[0].columns
    known = [(names.OUTER, places.numel(), places.shape[1])] if group.kind == HEADS else []
    more = numbers_like(module, module_path(group), known)
    return replace(group, numbers=(*group.numbers, *more)) if more else None


def module_path(group: UnitGroup) -> str:
    """The path of the module of a group."""
    return group.name.removesuffix(f".{group.kind}")


def _side_by_side(group: UnitGroup) -> UnitGroup | None:
    """The group with each unit's rows of a fused layer side by side: query, key and value of a
    head, or a neuron and its gate; None where no layer holds several rows of a unit apart.
    """
    parts = [_in_a_row(part) for part in group.parts]
    is_other = any(a is not b for a, b in zip(parts, group.parts, strict=True))
    return replace(group, parts=tuple(parts)) if is_other else None


def attending_together(groups: Sequence[UnitGroup]) -> UnitGroup | None:
    """The attentions of a block that attend together, head by head; None where there are none."""
    groups = [group for group in groups if group.kind == HEADS]
    if len(groups) < 2 or len({group.num_units for group in groups}) > 1:
        return None
    first = groups[0]
    numbers = {(n.module, n.name): n for group in groups for n in group.numbers}
    return UnitGroup(
        join(first.block, HEADS), HEADS, first.block, first.num_units,
        tuple(consumer for group in groups for consumer in group.consumers),
        tuple(part for group in groups for part in group.parts), tuple(numbers.values()),
    )  # fmt: skip


def _in_a_row(part: UnitPart) -> UnitPart:
    """A part whose units have several runs in it, with one run for each, as long."""
    num_units, width = part.places.shape
    is_apart = bool((part.places.diff(dim=1) > 1).any())
    is_all = part.places.numel() == int(part.places.max()) + 1
    if not (is_apart and is_all):
        return part
    return replace(part, places=torch.arange(num_units * width).view(num_units, width))
