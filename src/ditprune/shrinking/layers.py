"""Which layers does a module hold itself, and what else in it has a place for each unit?"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ditprune.checkpoints.shrunk.resize import number_of
from ditprune.shrinking import names
from ditprune.shrinking.units import Number, UnitPart
from ditprune.targets.discover import role_of
from ditprune.targets.lists import CONTAINERS, join
from ditprune.targets.matrix import CONVOLUTIONS, expected_shape
from ditprune.targets.writable import obstacle

_NORM = re.compile(r"norm", re.IGNORECASE)


@dataclass(frozen=True, eq=False)
class OwnLayer:
    """A Linear or a convolution, by its path in the denoiser."""

    path: str
    module: nn.Module

    @property
    def rows(self) -> int:
        return self._weight.shape[0]

    @property
    def columns(self) -> int:
        return self._weight.shape[1]

    @property
    def holds(self) -> str:
        """Which of query, key and value it projects, as letters; none for another layer."""
        is_narrow = names.PARALLEL.match(names.leaf_of(self.path)) and self.rows < 3 * self.columns
        return "" if is_narrow else names.projects(self.path)

    @property
    def is_matrix(self) -> bool:
        return expected_shape(self.module) is not None and not self.is_depthwise

    @property
    def is_depthwise(self) -> bool:
        """Whether it is a convolution that keeps channels apart."""
        groups = getattr(self.module, "groups", 1)
        return isinstance(self.module, CONVOLUTIONS) and groups == self.rows and groups > 1

    @property
    def obstacle(self) -> str:
        return "" if self.is_depthwise else obstacle(self.module)

    @property
    def _weight(self) -> Tensor:
        return self.module.get_parameter("weight")

    def row_parts(self, places: Tensor) -> list[UnitPart]:
        """Rows of its weight, and of its bias."""
        leaves = (
            ["weight", "bias"] if self.module._parameters.get("bias") is not None else ["weight"]
        )
        return [UnitPart(f"{self.path}.{leaf}", 0, places) for leaf in leaves]

    def column_part(self, places: Tensor) -> UnitPart:
        return UnitPart(f"{self.path}.weight", 1, places)


def own_layers(module: nn.Module, path: str) -> list[OwnLayer]:
    """The layers of a module itself: not those of modules in it that hold several."""
    return [*_own(module, path)]


def _own(module: nn.Module, path: str) -> Iterator[OwnLayer]:
    for name, child in module.named_children():
        inside = join(path, name)
        if _is_layer(child):
            yield OwnLayer(inside, child)
        elif isinstance(child, CONTAINERS) or len(layers_in(child, inside)) == 1:
            yield from _own(child, inside)


def layers_in(module: nn.Module, path: str) -> list[OwnLayer]:
    """All layers of a module."""
    return [OwnLayer(join(path, n), m) for n, m in module.named_modules() if _is_layer(m)]


def _is_layer(module: nn.Module) -> bool:
    is_known = isinstance(module, (nn.Linear, *CONVOLUTIONS))
    weight = module._parameters.get("weight")
    return is_known and weight is not None and weight.ndim >= 2


def modulates(layer: OwnLayer, block: str) -> bool:
    """Whether a layer makes shifts, scales and gates from the condition."""
    return role_of(layer.path.removeprefix(f"{block}.")) == "modulation"


def norms_in(module: nn.Module) -> Iterator[tuple[str, tuple[int, ...]]]:
    """(name, shape) of each norm right in a module."""
    for name, child in module.named_children():
        if _NORM.search(f"{name} {type(child).__name__}") and not isinstance(child, CONTAINERS):
            weights = [p for p in child.parameters(recurse=False) if p is not None]
            said = getattr(child, "normalized_shape", ())
            shape = tuple(weights[0].shape) if weights else tuple(said or ())
            yield name, shape


def norm_sizes(module: nn.Module) -> Iterator[int]:
    """How many channels each norm in a module has a weight for, however deep."""
    for name, child in module.named_modules():
        if _NORM.search(f"{names.leaf_of(name)} {type(child).__name__}"):
            yield from (p.numel() for p in child.parameters(recurse=False))


def runs(starts: Sequence[int], width: int) -> Tensor:
    """Places [num_units, …] of units that begin at `starts`, each as wide."""
    return torch.tensor(starts).reshape(-1, 1) + torch.arange(width)


def chunked(num_chunks: int, chunk: int, num_units: int, width: int, offset: int = 0) -> Tensor:
    """Places of units that have a run in each of several chunks, one after another.

    Args:
        chunk: how long a chunk is; unit u begins at u × width in each.
    """
    starts = [offset + unit * width for unit in range(num_units)]
    places = [runs([start + n * chunk for start in starts], width) for n in range(num_chunks)]
    return torch.cat(places, dim=1)


def numbers_of(module: nn.Module) -> Iterator[tuple[str, int]]:
    """(name, value) of the whole numbers of a module, and of lists that say how to split."""
    for name, value in vars(module).items():
        number = number_of(module, name)
        if number is not None:
            yield name, number
        elif isinstance(value, (list, tuple)) and names.SIZES.match(name):
            for index in range(len(value)):
                item = number_of(module, f"{name}.{index}")
                if item is not None:
                    yield f"{name}.{index}", item


def numbers_like(
    module: nn.Module, path: str, known: Sequence[tuple[re.Pattern[str], int, int]]
) -> list[Number]:
    """The numbers of a module that go down with its units.

    Args:
        known: for a pattern of names, the value that such a number has, and how much it goes down
            for each unit.
    """
    numbers: dict[str, Number] = {}
    for name, value in numbers_of(module):
        is_item = "." in name
        for pattern, expected, less in known:
            if value == expected and (is_item or pattern.match(name)):
                numbers.setdefault(name, Number(path, name, less))
    return [*numbers.values()]
