"""Kernel distance between features (KID): squared MMD under (x·y / f + 1)³, without bias.

Source: Bińkowski et al., Demystifying MMD GANs (2018), Eq. 4. Not by torchmetrics, whose estimate
is right for as many real images as samples only (1.9).
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from ditprune.evaluation.metrics.interval import Estimate, bootstrap

_BLOCK = 1000  # images compared at once; more are cut into blocks, whose mean it is


def compute(
    reference: Float[Tensor, "m f"], features: Float[Tensor, "n f"], seed: int = 0
) -> Estimate:
    """The distance of two images or more on each side, and its interval over the samples.

    Up to 1,000 images all pairs count; above, both sides are cut into equal numbers of blocks, each
    side in an order drawn by `seed`: a folder comes class by class, and blocks must be like it.
    """
    num_blocks = max(1, -(-max(len(reference), len(features)) // _BLOCK))
    num_blocks = min(num_blocks, len(reference) // 2, len(features) // 2)
    if num_blocks > 1:
        generator = torch.Generator().manual_seed(seed)
        reference, features = _mixed(reference, generator), _mixed(features, generator)
    pairs = list(
        zip(reference.tensor_split(num_blocks), features.tensor_split(num_blocks), strict=True)
    )
    kernels = [(_kernel(real, real), _kernel(real, fake), _kernel(fake, fake))
               for real, fake in pairs]  # fmt: skip

    def statistic(weights: Tensor) -> float:
        parts = weights.tensor_split(num_blocks)
        return sum(_resampled(*k, w) for k, w in zip(kernels, parts, strict=True)) / num_blocks

    value = statistic(torch.ones(len(features), dtype=torch.float64))
    return bootstrap(value, statistic, len(features), seed)


def _mixed(images: Float[Tensor, "n f"], generator: torch.Generator) -> Float[Tensor, "n f"]:
    return images[torch.randperm(len(images), generator=generator)]


def _kernel(one: Float[Tensor, "a f"], two: Float[Tensor, "b f"]) -> Float[Tensor, "a b"]:
    return (one @ two.T / one.shape[1] + 1) ** 3


def _resampled(
    real: Float[Tensor, "m m"], cross: Float[Tensor, "m n"], fake: Float[Tensor, "n n"],
    weights: Float[Tensor, " n"],
) -> float:  # fmt: skip
    """The squared MMD for counts of the samples; pairs of an image with itself do not count."""
    m, total = len(real), weights.sum()
    own = (real.sum() - real.trace()) / (m * (m - 1))
    squares = weights.square()
    pairs = (total.square() - squares.sum()).clamp(min=1)
    among = (weights @ fake @ weights - squares @ fake.diagonal()) / pairs
    between = (cross @ weights).sum() / (m * total.clamp(min=1))
    return (own + among - 2 * between).item()
