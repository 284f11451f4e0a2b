"""HOW MUCH PER LAYER: how many weights each target loses when all lose a given number together.

Pure numbers: what a layer's loss costs is measured elsewhere and comes in as a curve.

`uniform`: the same share of each. `owl`: more of layers with few outliers. `sensitivity`: where
the denoiser's output suffers least, measured end to end layer by layer. `proxy`: the same from each
layer's own error and one backward pass, for models too large to measure.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Float32
from torch import Tensor

from ditprune.errors import RecipeError

ALLOCATIONS = ("uniform", "owl", "sensitivity", "proxy")


OUTLIER_RATIO = 5.0
LARGEST_DEVIATION = 0.08


def outlier_share(scores: Float32[Tensor, "out in"], ratio: float = OUTLIER_RATIO) -> float:
    """The share of scores above `ratio` times the layer's mean.

    Source: Yin et al., arXiv 2310.05175, Eq. 2 (the layer outlier distribution).
    """
    return int(torch.count_nonzero(scores > ratio * scores.mean())) / scores.numel()


def sparsities(
    outliers: Mapping[str, float],
    num_weights: Mapping[str, int],
    sparsity: float,
    deviation: float = LARGEST_DEVIATION,
) -> dict[str, float]:
    """A share for each target: less where outliers are many, `sparsity` over all weights.

    The outlier shares are stretched to a range of 2·`deviation` around `sparsity`, as in OWL, and
    shifted so that the mean over weights is exact; where one would leave 0…1, all move less.
    """
    low, high = min(outliers.values()), max(outliers.values())
    span = high - low
    total = sum(num_weights.values())
    raw = {
        name: -2 * deviation * (value - low) / span if span else 0.0
        for name, value in outliers.items()
    }
    mean = sum(raw[name] * num_weights[name] for name in raw) / total
    room = min(sparsity, 1 - sparsity)
    farthest = max((abs(value - mean) for value in raw.values()), default=0.0)
    scale = min(1.0, room / farthest) if farthest else 1.0
    return {name: sparsity + scale * (value - mean) for name, value in raw.items()}


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
