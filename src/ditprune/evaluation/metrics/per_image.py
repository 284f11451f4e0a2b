"""Metrics that are one number for each image (SSIM, PSNR, scores): their mean."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Shaped
from torch import Tensor

from ditprune.evaluation.metrics import interval as estimate
from ditprune.evaluation.metrics.interval import Estimate


@dataclass(frozen=True)
class PerImage:
    """The number of each image, in the order of images."""

    values: tuple[float, ...] = ()


def update(state: PerImage, values: Shaped[Tensor, " n"]) -> PerImage:
    """Add the numbers of a batch."""
    return PerImage(state.values + tuple(values.double().tolist()))


def compute(state: PerImage, seed: int = 0) -> Estimate:
    """The mean, and its interval over images."""
    return estimate.mean(torch.tensor(state.values, dtype=torch.float64), seed)


def compute_share(state: PerImage) -> Estimate:
    """The same of zeros and ones."""
    return estimate.share(torch.tensor(state.values, dtype=torch.float64))
