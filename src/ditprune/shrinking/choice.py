"""Which units go, and how many where? The least error for a given price, over all blocks.

Groups that a matrix reads together, as both streams of a joint attention or a single-stream
block's heads and neurons, form a pool: what one of them loses depends on the other, so their units
go in one order. Then each group loses a first part of its own order, such that all parts together
cost least (a Lagrangian: error for a price).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

from ditprune.errors import RecipeError
from ditprune.method.columns import Reader, Removal, Supply, removals
from ditprune.shrinking.units import UnitGroup

Orders = Mapping[str, Sequence[Removal]]  # by group, what goes first, and what that costs then


def pools(groups: Mapping[str, UnitGroup]) -> list[list[str]]:
    """The names of groups, together with those that share a reader."""
    of: dict[str, list[str]] = {}
    by_layer: dict[str, str] = {}
    for name, group in groups.items():
        of[name] = [name]
        for consumer in group.consumers:
            other = by_layer.setdefault(consumer.layer, name)
            if of[other] is not of[name]:
                joined = of[other]
                joined += of[name]
                of |= dict.fromkeys(joined, joined)
    return list({id(members): members for members in of.values()}.values())


def orders_of(readers: Mapping[str, Reader], supplies: Mapping[str, Supply]) -> Orders:
    """The order in which the units of a pool's groups go, each group's by itself.

    Args:
        readers: by layer.
    """
    orders: dict[str, list[Removal]] = {name: [] for name in supplies}
    for step in removals(list(readers.values()), supplies):
        orders[step.group].append(step)
    return orders


@dataclass(frozen=True)
class _Run:
    """Steps of an order that go together: the hull of its costs has one slope over them."""

    slope: float
    group: str
    end: int


def counts_for(orders: Orders, price: float) -> dict[str, int]:
    """How many steps of each order go, so that the price of all is at least this at the least cost.

    Raises RecipeError where all of them together are not worth as much.
    """
    most = sum(step.price for order in orders.values() for step in order)
    if most < price * (1 - 1e-9):
        raise RecipeError(f"at most {most / price:.1%} of what was asked for can go")
    counts, left = dict.fromkeys(orders, 0), price * (1 - 1e-9)
    runs = [run for name, order in orders.items() for run in _hull(name, order)]
    for run in sorted(runs, key=lambda run: run.slope):
        for step in orders[run.group][counts[run.group] : run.end]:
            if left <= 0:
                return counts
            left -= step.price
            counts[run.group] += 1
    return counts


def _hull(name: str, order: Sequence[Removal]) -> list[_Run]:
    """The lower convex hull of an order's cost over its price."""
    prices = [0.0, *accumulate(step.price for step in order)]
    costs = [0.0, *accumulate(step.cost for step in order)]

    def slope(start: int, end: int) -> float:
        return (costs[end] - costs[start]) / (prices[end] - prices[start])

    corners = [0]
    for end in range(1, len(prices)):
        while len(corners) > 1 and slope(*corners[-2:]) >= slope(corners[-1], end):
            corners.pop()
        corners.append(end)
    return [_Run(slope(start, end), name, end) for start, end in pairwise(corners)]


def slope_of(orders: Orders, counts: Mapping[str, int]) -> float:
    """What the dearest of these steps cost for their price; 0 where none goes."""
    went = ((name, order[: counts[name]]) for name, order in orders.items() if counts[name])
    return max((_hull(name, order)[-1].slope for name, order in went), default=0.0)


def orders_tied(orders: Orders, ties: Iterable[Sequence[str]]) -> Orders:
    """One order for each tie, whose steps are those of its members together; the others stay.

    Args:
        ties: names of groups; the first of each names the order.
    """
    together: dict[str, Sequence[Removal]] = dict(orders)
    for names in ties:
        steps = zip(*(together.pop(name) for name in names), strict=True)
        together[names[0]] = [
            Removal(names[0], (), sum(s.cost for s in step), sum(s.price for s in step))
            for step in steps
        ]
    return together


def cost_of(orders: Orders, counts: Mapping[str, int]) -> float:
    """The error that so many steps of each order add."""
    return sum(step.cost for name, order in orders.items() for step in order[: counts[name]])


def price_of(orders: Orders, counts: Mapping[str, int]) -> float:
    """The price of so many steps of each order."""
    return sum(step.price for name, order in orders.items() for step in order[: counts[name]])


def kept_units(
    groups: Mapping[str, UnitGroup], orders: Orders, counts: Mapping[str, int]
) -> dict[str, tuple[int, ...]]:
    """By group, the units that stay once so many steps of its order went."""
    return {
        name: _without(group.num_units, (step.units for step in orders[name][: counts[name]]))
        for name, group in groups.items()
    }


def _without(num_units: int, gone: Iterable[Sequence[int]]) -> tuple[int, ...]:
    removed = {unit for units in gone for unit in units}
    return tuple(unit for unit in range(num_units) if unit not in removed)
