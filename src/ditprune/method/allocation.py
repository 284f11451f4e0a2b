"""HOW MUCH PER LAYER: how many weights does each target lose, if all together lose a given number?

Pure numbers: the cost of removing weights is measured elsewhere and comes in as a curve.

`uniform` removes the same share of each target. `owl` removes more where there are few outliers.
`sensitivity` removes more where the denoiser's output suffers least, measured end to end, layer by
layer. `proxy` estimates that from each layer's own error and one backward pass, for models that are
too large to measure.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

from ditprune.errors import RecipeError

ALLOCATIONS = ("uniform", "owl", "sensitivity", "proxy")
OUTLIER_RATIO = 5.0
LARGEST_DEVIATION = 0.08
MEASURED = ("sensitivity", "proxy")  # those that measure what each share costs, up to
LARGEST_SHARE = 0.98


def check_reachable(allocation: str, sparsity: float) -> None:
    """Raises RecipeError for a share beyond the bounds that an allocation has for each layer."""
    if allocation in MEASURED and sparsity > LARGEST_SHARE:
        raise RecipeError(
            f"--allocation {allocation} removes at most {LARGEST_SHARE:.0%} of a layer, "
            f"{sparsity:.1%} asked for; ask for less, or pass --allocation owl or uniform"
        )


def outlier_share(scores: Float[Tensor, "out in"], ratio: float = OUTLIER_RATIO) -> float:
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
    """A share for each target: lower where outliers are many, `sparsity` over all weights.

    The outlier shares are stretched to a range of 2·`deviation` around `sparsity`, as in OWL, and
    shifted so that the mean over weights is exact. If a share would leave 0…1, all move less.
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
    """The cost of removing more and more weights of one target.

    Args:
        num_weights: weights of the target.
        step: number of weights that are removed together: 1, or the number of output channels if
            each channel loses the same number.
        shares: removed shares, ascending; the first and the last are the bounds.
        costs: the cost of each share, ascending.
    """

    num_weights: int
    step: int
    shares: Sequence[float]
    costs: Sequence[float]


@dataclass(frozen=True)
class _Segment:
    """A straight part of one hull: `num_steps` steps, each weight at the same price."""

    name: str
    price: float
    num_steps: int


def allocate(curves: Mapping[str, Curve], num_prune: int) -> dict[str, int]:
    """How many weights each target loses, so that all together lose `num_prune` at the least cost.

    The total is exact if a target with step 1 can take the remainder; else it is below by less than
    the smallest step. Raises RecipeError if the bounds do not allow the total.
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
    segments = [s for name, curve in curves.items() for s in _segments(name, curve)]
    for segment in sorted(segments, key=lambda s: s.price):
        step = curves[segment.name].step
        taken = min(segment.num_steps, left // step)
        counts[segment.name] += taken * step
        left -= taken * step
    return counts


def _floor(curve: Curve, share: float) -> int:
    """The number of weights in a share, rounded down to whole steps."""
    return int(share * curve.num_weights / curve.step + 1e-9) * curve.step


def _segments(name: str, curve: Curve) -> list[_Segment]:
    hull = _lower_hull(list(zip(curve.shares, curve.costs, strict=True)))
    segments = []
    for (left, low), (right, high) in pairwise(hull):
        num_weights = _floor(curve, right) - _floor(curve, left)
        if num_weights:
            segments.append(_Segment(name, (high - low) / num_weights, num_weights // curve.step))
    return segments


def _lower_hull(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """The lower convex hull: slopes ascend along its points."""
    hull: list[tuple[float, float]] = []
    for point in points:
        while len(hull) > 1 and _slope(hull[-2], hull[-1]) >= _slope(hull[-1], point):
            hull.pop()
        hull.append(point)
    return hull


def _slope(a: tuple[float, float], b: tuple[float, float]) -> float:
    return (b[1] - a[1]) / (b[0] - a[0]) if b[0] > a[0] else math.inf
