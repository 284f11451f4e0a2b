"""Layers with many outliers keep more."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Float32
from torch import Tensor

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
