"""Which blocks get the same shape? Compilers handle few shapes, and each block would like its own.

Blocks that can be alike form a family: the same tensors, and the same units to lose. The first of a
list is one of its own where there is room for it, since it may be compiled apart: what it gets
often lies in memory in another order than what the others get. Blocks of a family that share a
shape are tied: they lose as many units in each attention and MLP. From free choice, those go
together first whose common shape costs least more; then each block moves to the shape that suits it
best, and each shape to what suits its blocks (Lloyd's iterations).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from jaxtyping import Float64
from torch import Tensor

from ditprune.shrinking.choice import cost_of, price_of, slope_of
from ditprune.shrinking.plan import ShrinkPlan
from ditprune.shrinking.recipe import ShrinkRecipe

_MOST_ROUNDS = 20
_LESS = 1 - 1e-9  # a smaller gain is rounding

Ties = list[list[str]]  # of blocks that share a shape
Family = tuple[object, ...]


def clustered(plan: ShrinkPlan, counts: Mapping[str, int], recipe: ShrinkRecipe) -> dict[str, int]:
    """Steps of each group's order, with at most as many shapes of blocks as the recipe allows.

    A family has one shape at least.

    Args:
        counts: of free choice.

    Raises RecipeError where what was asked for cannot be reached with tied blocks.
    """
    if not isinstance(recipe.max_shapes, int):
        return dict(counts)
    blocks = _Blocks.of(plan, has_firsts=True)
    if blocks.num_families > recipe.max_shapes:
        blocks = _Blocks.of(plan, has_firsts=False)
    if blocks.num_shapes(counts) <= recipe.max_shapes:
        return dict(counts)
    ties = best_ties = blocks.merged(slope_of(plan.orders, counts), recipe.max_shapes)
    price, best = price_of(plan.orders, counts), float("inf")
    for _ in range(_MOST_ROUNDS):
        tried = plan.at_price(price, blocks.groups_tied(ties))
        cost = cost_of(plan.orders, tried)
        if not cost < best * _LESS:
            break
        best, best_ties = cost, ties
        ties = blocks.moved(ties, tried, slope_of(plan.orders, tried))
    return plan.counts(recipe, blocks.groups_tied(best_ties))


@dataclass(frozen=True, eq=False)
class _Blocks:
    """The blocks that can lose units.

    Args:
        groups: by block, the names of its groups; in the same order in all of a family.
        family: by block.
        costs, prices: by block, of the first steps of each group, [group, steps from none to all].
        num_whole: shapes of blocks that can lose nothing.
    """

    groups: Mapping[str, Sequence[str]]
    family: Mapping[str, Family]
    costs: Mapping[str, Float64[Tensor, "group step"]]
    prices: Mapping[str, Float64[Tensor, "group step"]]
    num_whole: int

    @classmethod
    def of(cls, plan: ShrinkPlan, has_firsts: bool) -> _Blocks:
        """Those of a plan.

        Args:
            has_firsts: whether the first of a list is a family of its own.
        """
        groups: dict[str, list[str]] = {}
        for name, group in plan.groups.items():
            groups.setdefault(group.block, []).append(name)
        groups = {block: sorted(names) for block, names in groups.items()}
        tensors = _tensors(plan.prices.shapes, groups)
        family = {
            block: (
                has_firsts and _is_first(block),
                tensors[block],
                *(_kind(plan, block, name) for name in names),
            )
            for block, names in groups.items()
        }
        whole = {tensors[block] for block in tensors.keys() - groups.keys()}
        costs, prices = (
            {block: _sums(plan, names, word) for block, names in groups.items()}
            for word in ("cost", "price")
        )
        return cls(groups, family, costs, prices, len(whole))

    @property
    def num_families(self) -> int:
        """Shapes that there are at least."""
        return len(set(self.family.values())) + self.num_whole

    def num_shapes(self, counts: Mapping[str, int]) -> int:
        """Of all blocks, with so many steps gone."""
        shapes = {
            (self.family[block], *(counts[name] for name in names))
            for block, names in self.groups.items()
        }
        return len(shapes) + self.num_whole

    def groups_tied(self, ties: Iterable[Sequence[str]]) -> Ties:
        """The groups that lose as much as each other."""
        return [
            list(names)
            for blocks in ties
            for names in zip(*(self.groups[block] for block in blocks), strict=True)
        ]

    def merged(self, slope: float, max_shapes: int) -> Ties:
        """Blocks that go together, where `slope` is what the error is worth in price."""
        ties: Ties = [[block] for block in self.groups]
        sums = [self._values(block, slope) for block in self.groups]
        while len(ties) > max(max_shapes, self.num_families) - self.num_whole:
            pairs = (
                (_worse(sums[i], sums[j]), i, j)
                for j in range(len(ties))
                for i in range(j)
                if self.family[ties[i][0]] == self.family[ties[j][0]]
            )
            _, first, second = min(pairs)
            ties[first] = ties[first] + ties.pop(second)
            sums[first] = sums[first] + sums.pop(second)
        return ties

    def moved(self, ties: Ties, counts: Mapping[str, int], slope: float) -> Ties:
        """Each block with those whose shape suits it best."""
        shapes = [tuple(counts[name] for name in self.groups[blocks[0]]) for blocks in ties]
        after: Ties = [[] for _ in ties]
        for block in self.groups:
            values = self._values(block, slope)
            offers = (
                (float(sum(values[i, step] for i, step in enumerate(shape))), number)
                for number, shape in enumerate(shapes)
                if self.family[ties[number][0]] == self.family[block]
            )
            after[min(offers)[1]].append(block)
        return [blocks for blocks in after if blocks]

    def _values(self, block: str, slope: float) -> Float64[Tensor, "group step"]:
        """What each number of steps costs, less what its price is worth."""
        return self.costs[block] - slope * self.prices[block]


def _worse(first: Tensor, second: Tensor) -> float:
    """How much more two shapes cost as one."""
    apart = first.amin(1).sum() + second.amin(1).sum()
    return float((first + second).amin(1).sum() - apart)


def _tensors(
    shapes: Mapping[str, tuple[int, ...]], blocks: Iterable[str]
) -> dict[str, tuple[tuple[str, tuple[int, ...]], ...]]:
    """By block, its tensors and their shapes; also of blocks beside these, by their numbers."""
    blocks = set(blocks)
    parents = {block[: block.rfind(".") + 1] for block in blocks}
    tensors: dict[str, list[tuple[str, tuple[int, ...]]]] = {}
    for name, shape in shapes.items():
        for parent in parents:
            child, _, inner = name.removeprefix(parent).partition(".")
            block = f"{parent}{child}"
            if name.startswith(parent) and (child.isdecimal() or block in blocks):
                tensors.setdefault(block, []).append((inner, shape))
    return {block: tuple(sorted(members)) for block, members in tensors.items()}


def _is_first(block: str) -> bool:
    return block.rpartition(".")[2] == "0"


def _kind(plan: ShrinkPlan, block: str, name: str) -> Family:
    group, order = plan.groups[name], plan.orders[name]
    sizes = tuple(len(step.units) for step in order)
    return name.removeprefix(block), group.kind, group.num_units, sizes


def _sums(plan: ShrinkPlan, names: Sequence[str], word: str) -> Float64[Tensor, "group step"]:
    """Of the first steps of each order; beyond the last, a price of none at an endless cost."""
    rows = [[0.0, *accumulate(getattr(step, word) for step in plan.orders[n])] for n in names]
    most = max(map(len, rows))
    beyond = float("inf") if word == "cost" else 0.0
    padded = [[*row, *[beyond] * (most - len(row))] for row in rows]
    return torch.tensor(padded, dtype=torch.float64)
