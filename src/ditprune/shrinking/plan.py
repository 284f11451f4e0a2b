"""What would go from a denoiser: which units, at which error, and what is left then?"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import Tensor

from ditprune.errors import RecipeError, TargetError, did_you_mean
from ditprune.method.columns import Reader, Supply
from ditprune.shrinking.choice import (
    Orders,
    cost_of,
    counts_for,
    kept_units,
    orders_of,
    orders_tied,
    price_of,
)
from ditprune.shrinking.moments import Demand
from ditprune.shrinking.prices import NOTHING, Prices, Size
from ditprune.shrinking.recipe import ShrinkRecipe
from ditprune.shrinking.units import NEURONS, Cut, UnitGroup

_MULTIPLES = ((4096, 128), (2048, 64), (1024, 32))
_FEWEST = 16
_HALVINGS = 40  # of a price


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
        saved: what the lower rank of modulation saves besides.
    """

    groups: Mapping[str, UnitGroup]
    orders: Orders
    prices: Prices
    scale: float
    most: float
    saved: Size = NOTHING

    def counts(self, recipe: ShrinkRecipe, ties: Sequence[Sequence[str]] = ()) -> dict[str, int]:
        """How many steps of each group's order go.

        Args:
            ties: groups that lose as much as each other.

        Raises RecipeError where that cannot be.
        """
        if recipe.max_error is not None:
            return self._within(recipe.max_error, ties)
        if recipe.fit is not None:
            return self._fitting(int(recipe.fit), ties)
        assert recipe.ratio is not None
        if not recipe.ratio:
            return self._nothing
        can = self._can / (self.most or 1.0)
        if can < recipe.ratio:
            raise RecipeError(
                f"--ratio {recipe.ratio:g}: at most {can:.3f} of these parts can go, since a head "
                "and one multiple of neurons stay in each; ask for less, or name more parts"
            )
        return self.at_price(recipe.ratio * self.most, ties)

    def at_price(self, price: float, ties: Sequence[Sequence[str]] = ()) -> dict[str, int]:
        """The least error for at least this price. Raises RecipeError where not as much can go."""
        counts = counts_for(orders_tied(self.orders, ties), price) if price else self._nothing
        return counts | {name: counts[names[0]] for names in ties for name in names}

    def _within(self, max_error: float, ties: Sequence[Sequence[str]]) -> dict[str, int]:
        """The most that goes at an expected error of at most this."""
        return self._turn(lambda counts: self.error(counts) > max_error, ties)[0]

    def _fitting(self, num_bytes: int, ties: Sequence[Sequence[str]]) -> dict[str, int]:
        """The least that goes with which the denoiser's weights take at most this."""

        def fits(counts: Mapping[str, int]) -> bool:
            return self.size(counts).num_bytes <= num_bytes

        if fits(self._nothing):
            return self._nothing
        least = self.size(self.at_price(self._can)).num_bytes
        if least > num_bytes:
            raise RecipeError(
                f"--fit {num_bytes:,}: the weights take {self.size(self._nothing).num_bytes:,} "
                f"bytes, and {least:,} with all gone that can go; ask for more, or name more parts"
            )
        return self._turn(fits, ties)[1]

    def _turn(
        self, is_far: Callable[[Mapping[str, int]], bool], ties: Sequence[Sequence[str]]
    ) -> tuple[dict[str, int], dict[str, int]]:
        """The most that goes before something holds, and the least with which it does."""
        low, high = 0.0, self._can
        near, far = self._nothing, self.at_price(self._can, ties)
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            tried = self.at_price(middle, ties)
            if is_far(tried):
                high, far = middle, tried
            else:
                low, near = middle, tried
        return near, far

    @property
    def _nothing(self) -> dict[str, int]:
        return dict.fromkeys(self.orders, 0)

    @property
    def _can(self) -> float:
        """The price of all that can go."""
        return sum(step.price for order in self.orders.values() for step in order)

    def size(self, counts: Mapping[str, int]) -> Size:
        """Of the denoiser then."""
        return self.prices.size(self.cut(counts)).plus(self.saved, -1)

    def error(self, counts: Mapping[str, int]) -> float:
        """Expected relative error of the predicted noise."""
        return cost_of(self.orders, counts) / self.scale

    def ratio(self, counts: Mapping[str, int]) -> float:
        """The share of the price of all units that goes."""
        return price_of(self.orders, counts) / self.most if self.most else 0.0

    def cut(self, counts: Mapping[str, int]) -> Cut:
        """Which units stay."""
        return Cut(self.groups, kept_units(self.groups, self.orders, counts))
