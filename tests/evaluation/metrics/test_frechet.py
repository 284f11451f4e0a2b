"""The Fréchet distance over our own features, against a matrix square root."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from torch import Tensor

from ditprune.evaluation.metrics.frechet import against, distance, moments

NUM_FEATURES = 6


def features(images: Tensor) -> Tensor:
    """Six numbers per image, not all independent of each other."""
    flat = images.flatten(1)
    return torch.stack([flat[:, i::NUM_FEATURES].square().sum(1) for i in range(NUM_FEATURES)], 1)


def images(seed: int, num_images: int, shift: float = 0.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return shift + torch.rand(num_images, 1, 6, 6, generator=generator)


def naive(real: Tensor, fake: Tensor) -> float:
    """‖μ₁ − μ₂‖² + tr(Σ₁ + Σ₂ − 2 (Σ₁Σ₂)^½)."""
    one, two = (features(batch).double().numpy() for batch in (real, fake))
    cov_1, cov_2 = np.cov(one, rowvar=False), np.cov(two, rowvar=False)
    root = sqrtm(cov_1 @ cov_2).real
    return float(((one.mean(0) - two.mean(0)) ** 2).sum() + np.trace(cov_1 + cov_2 - 2 * root))


@pytest.mark.parametrize("shift", [0.0, 0.2, 1.0])
def test_the_distance_is_the_formula(shift) -> None:
    real, fake = images(0, 300), images(1, 200, shift)
    metric = against(moments(features, NUM_FEATURES, real), features)
    metric.update(fake, real=False)
    assert metric.compute().item() == pytest.approx(naive(real, fake), rel=1e-3, abs=1e-4)


def test_moments_are_sums_over_any_batches() -> None:
    real = images(0, 1203)  # more than two batches
    sums = moments(features, NUM_FEATURES, real)
    values = features(real).double()
    torch.testing.assert_close(sums["sum"].double(), values.sum(0))
    torch.testing.assert_close(sums["sum_outer"].double(), values.T @ values)
    assert sums["num_images"].item() == 1203


def test_moments_stand_for_the_images() -> None:
    real, fake = images(0, 700), images(1, 50, 0.3)
    whole = distance(features, NUM_FEATURES)
    for batch in real.split(100):
        whole.update(batch, real=True)
    short = against(moments(features, NUM_FEATURES, real), features)
    for metric in (whole, short):
        metric.update(fake, real=False)
    torch.testing.assert_close(short.compute(), whole.compute(), rtol=1e-5, atol=1e-6)


def test_the_reference_is_not_changed_by_use() -> None:
    sums = moments(features, NUM_FEATURES, images(0, 100))
    before = {name: tensor.clone() for name, tensor in sums.items()}
    metric = against(sums, features)
    metric.update(images(1, 10), real=True)
    for name, tensor in before.items():
        torch.testing.assert_close(sums[name], tensor, rtol=0, atol=0)


def test_images_are_at_no_distance_from_themselves() -> None:
    real = images(0, 100)
    metric = against(moments(features, NUM_FEATURES, real), features)
    metric.update(real, real=False)
    assert metric.compute().item() == pytest.approx(0, abs=1e-3)
