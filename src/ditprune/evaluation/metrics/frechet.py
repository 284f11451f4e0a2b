"""Fréchet distance between the features of samples and of real images (FID, and sFID)."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance

from ditprune.evaluation.metrics.interval import Estimate, bootstrap

# Resamples for an interval: one takes the eigenvalues of a [f, f] matrix.
_MOST_RESAMPLES, _FEWEST_RESAMPLES, _MANY_FEATURES = 200, 20, 128


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


def moments_of(features: Float[Tensor, "n f"]) -> dict[str, Tensor]:
    """The same sums over features."""
    values = features.double()
    return {
        "sum": values.sum(0),
        "sum_outer": values.T @ values,
        "num_images": torch.tensor(len(values)),
    }


def compute(
    reference: Mapping[str, Tensor], features: Float[Tensor, "n f"], seed: int = 0
) -> Estimate:
    """The distance of features of two images or more, and its interval over these images.

    The interval takes 200 resamples up to 128 features and 20 above; the reference stays as it is.
    """
    metric = against(reference, lambda values: values)
    metric.update(features.double(), real=False)
    value = max(0.0, metric.compute().item())
    few = features.shape[1] > _MANY_FEATURES
    return bootstrap(
        value, _resampled(reference, features.double()), len(features), seed,
        _FEWEST_RESAMPLES if few else _MOST_RESAMPLES, lowest=0.0,
    )  # fmt: skip


def _resampled(
    reference: Mapping[str, Tensor], features: Float[Tensor, "n f"]
) -> Callable[[Tensor], float]:
    """The distance for counts of the images, by eigenvalues of a symmetric matrix.

    With L Lᵀ = Σ_r, tr (Σ_r Σ)^½ = Σ √eig(Lᵀ Σ L), which is the covariance of the features
    times L.
    """
    count = reference["num_images"].double()
    mean_r = reference["sum"].double() / count
    covariance = reference["sum_outer"].double() - count * torch.outer(mean_r, mean_r)
    values, vectors = torch.linalg.eigh(covariance / (count - 1))
    root = vectors * values.clamp(min=0).sqrt()
    trace_r, num = values.sum(), len(features)
    turned = features @ root

    def statistic(weights: Tensor) -> float:
        mean = weights @ features / num
        spread = ((weights @ features.square()) - num * mean.square()).sum() / (num - 1)
        centred = (turned - mean @ root) * (weights / (num - 1)).sqrt()[:, None]
        gram = centred @ centred.T if num < turned.shape[1] else centred.T @ centred
        shared = torch.linalg.eigvalsh(gram).clamp(min=0).sqrt().sum()
        return ((mean - mean_r).square().sum() + trace_r + spread - 2 * shared).item()

    return statistic
