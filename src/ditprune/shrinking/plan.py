"""What would go from a denoiser: which units, at which error, and what is left then?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import Tensor

from ditprune.errors import RecipeError, TargetError, did_you_mean
from ditprune.method.columns import Reader, Supply
from ditprune.shrinking.choice import Orders, cost_of, counts_for, kept_units, orders_of, price_of
from ditprune.shrinking.moments import Demand
from ditprune.shrinking.prices import Prices
from ditprune.shrinking.recipe import ShrinkRecipe
from ditprune.shrinking.units import NEURONS, Cut, UnitGroup

_MULTIPLES = ((4096, 128), (2048, 64), (1024, 32))
_FEWEST = 16


def select_groups(groups: Mapping[str, UnitGroup], recipe: ShrinkRecipe) -> dict[str, UnitGroup]:
    """Those that a recipe takes. Raises TargetError for a glob that matches none."""
    for word in ("include", "exclude"):
        for glob in getattr(recipe, word):
            if not any(fnmatchcase(name, glob) for name in groups):
                raise TargetError(
                    f"--{word} '{glob}' matches none of {len(groups)} attentions and MLPs; "
                    f"{did_you_mean(glob, set(groups))}"
                )

    def is_taken(group: UnitGroup) -> bool:
        included = not recipe.include or any(fnmatchcase(group.name, g) for g in recipe.include)
        excluded = any(fnmatchcase(group.name, glob) for glob in recipe.exclude)
        return group.kind in recipe.parts and included and not excluded

    return {name: group for name, group in groups.items() if is_taken(group)}


def multiple_of(num_units: int, recipe: ShrinkRecipe) -> int:
    """Neurons of an MLP of this width stay in multiples of so many."""
    if isinstance(recipe.multiple, int):
        return min(recipe.multiple, num_units)
    wanted = next((multiple for width, multiple in _MULTIPLES if num_units >= width), _FEWEST)
    return min(wanted, num_units)


def supply_of(group: UnitGroup, prices: Prices, recipe: ShrinkRecipe) -> Supply:
    """What may go from a group."""
    batch = multiple_of(group.num_units, recipe) if group.kind == NEURONS else 1
    return Supply(group.num_units, batch, batch, prices.of_unit(group, recipe.price))


def readers_of(
    pool: Sequence[UnitGroup], weights: Mapping[str, tuple[Tensor, bool]],
    followed: Mapping[str, Demand],
) -> dict[str, Reader]:  # fmt: skip
    """What reads the units of a pool, by layer; without those that the output does not follow.

    Args:
        weights: by layer, [C_out, C_in], and whether it has a bias.
    """
    columns: dict[str, dict[str, Tensor]] = {}
    for group in pool:
        for consumer in group.consumers:
            columns.setdefault(consumer.layer, {})[group.name] = consumer.columns
    return {
        layer: Reader(
            weights[layer][0],
            followed[layer].moments.matrix(has_bias=weights[layer][1]),
            followed[layer].rows,
            by_group,
        )
        for layer, by_group in columns.items()
        if layer in followed
    }


def pool_orders(
    pool: Sequence[UnitGroup], weights: Mapping[str, tuple[Tensor, bool]],
    followed: Mapping[str, Demand], prices: Prices, recipe: ShrinkRecipe,
) -> Orders:  # fmt: skip
    """In which order the units of a pool go."""
    supplies = {group.name: supply_of(group, prices, recipe) for group in pool}
    return orders_of(readers_of(pool, weights, followed), supplies)


@dataclass(frozen=True, eq=False)
class ShrinkPlan:
    """What can go from a denoiser, and at which cost.

    Args:
        groups: those that the recipe takes.
        scale: the sum of squares of the output that costs are relative to.
        most: the price of all units together.
    """

    groups: Mapping[str, UnitGroup]
    orders: Orders
    prices: Prices
    scale: float
    most: float

    def counts(self, recipe: ShrinkRecipe) -> dict[str, int]:
        """How many steps of each group's order go. Raises RecipeError where that cannot be."""
        if recipe.max_error is not None:
            return self._within(recipe.max_error)
        assert recipe.ratio is not None
        if not recipe.ratio:
            return dict.fromkeys(self.orders, 0)
        can = sum(step.price for order in self.orders.values() for step in order) / (
            self.most or 1.0
        )
        if can < recipe.ratio:
            raise RecipeError(
                f"--ratio {recipe.ratio:g}: at most {can:.3f} of these parts can go, since a head "
                "and one multiple of neurons stay in each; ask for less, or name more parts"
            )
        return counts_for(self.orders, recipe.ratio * self.most)

    def _within(self, max_error: float) -> dict[str, int]:
        """The most that goes at an expected error of at most this."""
        low, high = 0.0, sum(step.price for order in self.orders.values() for step in order)
        counts = dict.fromkeys(self.orders, 0)
        for _ in range(40):
            middle = (low + high) / 2
            tried = counts_for(self.orders, middle) if middle else counts
            if self.error(tried) <= max_error:
                low, counts = middle, tried
            else:
                high = middle
        return counts

    def error(self, counts: Mapping[str, int]) -> float:
        """Expected relative error of the predicted noise."""
        return cost_of(self.orders, counts) / self.scale

    def ratio(self, counts: Mapping[str, int]) -> float:
        """The share of the price of all units that goes."""
        return price_of(self.orders, counts) / self.most if self.most else 0.0

    def cut(self, counts: Mapping[str, int]) -> Cut:
        """Which units stay."""
        return Cut(self.groups, kept_units(self.groups, self.orders, counts))
