"""What is a unit, and what goes with it? Rows and columns of tensors, and numbers of modules.

A unit is a head of an attention, or a neuron of an MLP. What it computes leaves it through columns
of a projection behind it: what these columns read can be set to zero without the unit. A group
holds the units of one attention or one MLP.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

HEADS, NEURONS = "heads", "neurons"


@dataclass(frozen=True, eq=False)
class UnitPart:
    """Where units lie along one dimension of a tensor; what belongs to no unit stays.

    Args:
        tensor: the name of a parameter or buffer in the denoiser.
        places: of each unit, int64 [num_units, width].
    """

    tensor: str
    dim: int
    places: Tensor

    def runs(self) -> list[list[int]]:
        """The places as [start, length, step]: unit u has a run from start + u × step on."""
        first = self.places[0].tolist()
        steps = (self.places[min(1, len(self.places) - 1)] - self.places[0]).tolist()
        runs: list[list[int]] = []
        for place, step in zip(first, steps, strict=True):
            if runs and place == sum(runs[-1][:2]) and step == runs[-1][2]:
                runs[-1][1] += 1
            else:
                runs.append([place, 1, step])
        assert torch.equal(self.places, places_of(runs, len(self.places))), self.tensor
        return runs


def places_of(runs: Sequence[Sequence[int]], num_units: int) -> Tensor:
    """The places of units that have these runs, [num_units, width]."""
    units = torch.arange(num_units)[:, None]
    return torch.cat(
        [torch.arange(start, start + length) + units * step for start, length, step in runs], dim=1
    )


@dataclass(frozen=True, eq=False)
class Consumer:
    """A projection that reads what units give.

    Args:
        layer: its name.
        columns: the input channels that each unit gives, int64 [num_units, width].
    """

    layer: str
    columns: Tensor


@dataclass(frozen=True)
class Number:
    """A number of a module that its forward reads: `per_unit` less for each unit that goes.

    Args:
        name: of the attribute; `split_sizes.1` is an item of a list.
    """

    module: str
    name: str
    per_unit: int


@dataclass(frozen=True, eq=False)
class UnitGroup:
    """The units of one attention or one MLP.

    Args:
        name: the path of its module; two groups of one module add their kind.
        kind: `heads` or `neurons`.
        block: the path of its block.
        consumers: of both streams, where these attend together.
        parts: of every tensor that a unit has a share in, the consumers' weights among them.
        numbers: that go down with it.
    """

    name: str
    kind: str
    block: str
    num_units: int
    consumers: tuple[Consumer, ...]
    parts: tuple[UnitPart, ...]
    numbers: tuple[Number, ...]

    def removed(self, stay: Iterable[int]) -> list[int]:
        """The units that are not among these."""
        staying = set(stay)
        return [unit for unit in range(self.num_units) if unit not in staying]


@dataclass(frozen=True)
class Whole:
    """An attention or MLP whose units all stay, and why."""

    name: str
    kind: str
    block: str
    reason: str


@dataclass(frozen=True, eq=False)
class Cut:
    """Which units stay, and so what stays of every tensor and number.

    Args:
        groups: by name.
        kept: by group, the units that stay, ascending; a group that is not named stays whole.
    """

    groups: Mapping[str, UnitGroup]
    kept: Mapping[str, Sequence[int]]

    @cached_property
    def _parts(self) -> dict[str, list[tuple[int, Tensor]]]:
        """By tensor, dimensions with the places along them that go."""
        parts: dict[str, list[tuple[int, Tensor]]] = {}
        for name, stay in self.kept.items():
            group = self.groups[name]
            removed = group.removed(stay)
            for part in group.parts if removed else ():
                gone = part.places[removed].reshape(-1)
                parts.setdefault(part.tensor, []).append((part.dim, gone))
        return parts

    @property
    def tensors(self) -> Collection[str]:
        """The names of those that become smaller."""
        return self._parts.keys()

    def stay(self, name: str, shape: Sequence[int]) -> dict[int, Tensor]:
        """By dimension of a tensor of this shape, the places that stay; only where some go."""
        masks: dict[int, Tensor] = {}
        for dim, gone in self._parts.get(name, ()):
            mask = masks.setdefault(dim, torch.ones(shape[dim], dtype=torch.bool))
            mask[gone] = False
        return {dim: mask.nonzero().reshape(-1) for dim, mask in masks.items()}

    def tensor(self, name: str, tensor: Tensor) -> Tensor:
        """What stays of a tensor."""
        for dim, places in self.stay(name, tensor.shape).items():
            tensor = tensor.index_select(dim, places.to(tensor.device))
        return tensor

    def shape(self, name: str, shape: Sequence[int]) -> tuple[int, ...]:
        """That of what stays of a tensor of this shape."""
        stay = self.stay(name, shape)
        return tuple(len(stay[dim]) if dim in stay else size for dim, size in enumerate(shape))

    def numbers(self) -> dict[tuple[str, str], int]:
        """By module and attribute, how much its number goes down."""
        less: dict[tuple[str, str], int] = {}
        for name, stay in self.kept.items():
            group = self.groups[name]
            for number in group.numbers:
                key, count = (number.module, number.name), group.num_units - len(stay)
                less[key] = less.get(key, 0) + number.per_unit * count
        return {key: count for key, count in less.items() if count}
