"""Fréchet distance between the features of samples and of real images (FID)."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance


class _Features(nn.Module):
    def __init__(self, features: Callable[[Tensor], Tensor], num_features: int) -> None:
        super().__init__()
        self.num_features = num_features
        self._features = features

    def forward(self, images: Tensor) -> Tensor:
        return self._features(images)


def distance(features: Callable[[Tensor], Tensor], num_features: int) -> FrechetInceptionDistance:
    """The metric over a feature extractor of our choice: images [N, C, H, W] → [N, F]."""
    return FrechetInceptionDistance(_Features(features, num_features))


def moments(
    features: Callable[[Tensor], Tensor], num_features: int, images: Float[Tensor, "n c h w"]
) -> dict[str, Tensor]:
    """Sums over real images that `against` takes: `sum`, `sum_outer`, `num_images`."""
    metric = distance(features, num_features)
    with torch.no_grad():
        for batch in images.split(500):
            metric.update(batch, real=True)
    return {
        "sum": metric.real_features_sum,
        "sum_outer": metric.real_features_cov_sum,
        "num_images": metric.real_features_num_samples,
    }


def against(
    reference: Mapping[str, Tensor], features: Callable[[Tensor], Tensor]
) -> FrechetInceptionDistance:
    """The metric with its real side given by moments; update it with `real=False`."""
    metric = distance(features, len(reference["sum"]))
    metric.real_features_sum = reference["sum"].clone()
    metric.real_features_cov_sum = reference["sum_outer"].clone()
    metric.real_features_num_samples = reference["num_images"].clone()
    return metric
