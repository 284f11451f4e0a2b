"""Spends a total where it costs least: a Lagrangian choice over convex curves of cost.

Each target has a curve of cost over the share removed. Of its points only the lower convex hull
matters: an optimal choice under one total removes from every target while its next weight costs
less than a common price. So the segments of all hulls are filled in the order of their slopes;
the last is filled in part, and the total is met exactly.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from ditprune.errors import RecipeError


@dataclass(frozen=True)
class Curve:
    """What it costs to remove more and more of one target.

    Args:
        num_weights: of the target.
        step: weights that can only go together: 1, or the output channels where each loses
            the same number.
        shares: removed, ascending, the first and the last being the bounds.
        costs: of each share, ascending.
    """

    num_weights: int
    step: int
    shares: Sequence[float]
    costs: Sequence[float]


@dataclass(frozen=True)
class _Segment:
    """A stretch of one hull: so many steps at this price for each weight."""

    name: str
    price: float
    num_steps: int


def allocate(curves: Mapping[str, Curve], num_prune: int) -> dict[str, int]:
    """How many weights each target loses so that all lose `num_prune` at the least cost.

    The total is exact where a target with step 1 has room for the remainder, else below it by
    less than the smallest step. Raises RecipeError where the bounds leave no such choice.
    """
    counts = {name: _floor(curve, curve.shares[0]) for name, curve in curves.items()}
    most = sum(_floor(curve, curve.shares[-1]) for curve in curves.values())
    if not sum(counts.values()) <= num_prune <= most:
        total = sum(curve.num_weights for curve in curves.values())
        raise RecipeError(
            f"--allocation: the bounds of the layers allow {sum(counts.values()) / total:.1%} to "
            f"{most / total:.1%}, asked for {num_prune / total:.1%}; ask for another sparsity"
        )
    left = num_prune - sum(counts.values())
    segments = [one for name, curve in curves.items() for one in _segments(name, curve)]
    for segment in sorted(segments, key=lambda one: one.price):
        step = curves[segment.name].step
        taken = min(segment.num_steps, left // step)
        counts[segment.name] += taken * step
        left -= taken * step
    return counts


def _floor(curve: Curve, share: float) -> int:
    """The weights of a share in whole steps."""
    return int(share * curve.num_weights / curve.step + 1e-9) * curve.step


def _segments(name: str, curve: Curve) -> list[_Segment]:
    hull = _lower_hull(list(zip(curve.shares, curve.costs, strict=True)))
    found = []
    for (left, low), (right, high) in pairwise(hull):
        num_weights = _floor(curve, right) - _floor(curve, left)
        if num_weights:
            found.append(_Segment(name, (high - low) / num_weights, num_weights // curve.step))
    return found


def _lower_hull(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points from below which no other lies: slopes ascend along them."""
    hull: list[tuple[float, float]] = []
    for point in points:
        while len(hull) > 1 and _slope(hull[-2], hull[-1]) >= _slope(hull[-1], point):
            hull.pop()
        hull.append(point)
    return hull


def _slope(a: tuple[float, float], b: tuple[float, float]) -> float:
    return (b[1] - a[1]) / (b[0] - a[0]) if b[0] > a[0] else math.inf
