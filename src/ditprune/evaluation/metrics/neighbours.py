"""Precision and recall: the share of samples among real images, and of real images among samples.

An image is among others where it lies no farther from one of them than that one's third nearest
neighbour. Source: Kynkäänniemi et al. (2019), Eqs. 1 and 2, k = 3.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

NUM_NEIGHBOURS = 3
_ROWS = 1000  # whose distances to all others are in memory at once


def radii(features: Float[Tensor, "n f"]) -> Float[Tensor, " n"]:
    """The distance of each image to its third nearest neighbour (or the last there is)."""
    k = min(NUM_NEIGHBOURS, len(features) - 1)
    # The nearest of all is the image itself.
    return torch.cat(
        [_distances(rows, features).kthvalue(k + 1).values for rows in features.split(_ROWS)]
    )


def among(
    points: Float[Tensor, "n f"], others: Float[Tensor, "m f"], reach: Float[Tensor, " m"]
) -> Bool[Tensor, " n"]:
    """Whether each point lies within the reach of one of the others."""
    return torch.cat([(_distances(rows, others) <= reach).any(1) for rows in points.split(_ROWS)])


def precision(real: Float[Tensor, "m f"], samples: Float[Tensor, "n f"]) -> Bool[Tensor, " n"]:
    """Whether each sample is among the real images; the precision is the mean."""
    return among(samples, real, radii(real))


def recall(real: Float[Tensor, "m f"], samples: Float[Tensor, "n f"]) -> Bool[Tensor, " m"]:
    """Whether each real image is among the samples; the recall is the mean."""
    return among(real, samples, radii(samples))


def _distances(one: Float[Tensor, "a f"], two: Float[Tensor, "b f"]) -> Float[Tensor, "a b"]:
    return torch.cdist(one.double(), two.double())
