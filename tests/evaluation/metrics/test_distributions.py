"""FID's interval, KID, Inception Score, precision and recall, each against its definition."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from scipy.spatial.distance import cdist
from torch import Tensor
from torchmetrics.image.kid import poly_mmd

from ditprune.evaluation.extractors import Features, joined_features
from ditprune.evaluation.metrics import distributions
from ditprune.evaluation.metrics.distributions import (
    frechet_distance,
    inception_score,
    kernel_distance,
    moments,
    precision,
    recall,
)
from ditprune.evaluation.metrics.interval import resamples


def draw(num: int, width: int, seed: int, shift: float = 0.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    turn = torch.randn(width, width, generator=torch.Generator().manual_seed(99))
    return (torch.randn(num, width, generator=generator) @ turn + shift).double()


def naive_fid(real: np.ndarray, fake: np.ndarray) -> float:
    cov_1, cov_2 = np.cov(real, rowvar=False), np.cov(fake, rowvar=False)
    root = sqrtm(cov_1 @ cov_2).real
    between = ((real.mean(0) - fake.mean(0)) ** 2).sum()
    return float(between + np.trace(cov_1 + cov_2 - 2 * root))


@pytest.mark.parametrize("shift", [0.0, 0.5])
def test_fid_of_features_is_the_formula(shift) -> None:
    real, fake = draw(300, 6, 0), draw(200, 6, 1, shift)
    found = frechet_distance(moments(real), fake)
    assert found.value == pytest.approx(naive_fid(real.numpy(), fake.numpy()), rel=1e-9)
    assert found.low is not None
    assert found.high is not None
    assert 0 <= found.low <= found.value <= found.high


def test_the_reference_is_not_changed_by_use() -> None:
    sums = moments(draw(100, 6, 0))
    before = {name: tensor.clone() for name, tensor in sums.items()}
    frechet_distance(sums, draw(10, 6, 1))
    for name, tensor in before.items():
        torch.testing.assert_close(sums[name], tensor, rtol=0, atol=0)


def test_images_are_at_no_distance_from_themselves() -> None:
    real = draw(100, 6, 0)
    assert frechet_distance(moments(real), real).value == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("num", [40, 5], ids=["more images than features", "fewer"])
def test_fid_of_a_resample_is_the_formula_over_repeated_images(num) -> None:
    real, fake = draw(300, 6, 0), draw(num, 6, 1, 0.3)
    statistic = distributions._frechet_of_resample(moments(real), fake)
    for weights in resamples(num, 3, seed=0):
        repeated = fake.repeat_interleave(weights.long(), dim=0)
        expected = naive_fid(real.numpy(), repeated.numpy())
        assert statistic(weights) == pytest.approx(expected, rel=1e-5)


def naive_kid(real: np.ndarray, fake: np.ndarray) -> float:
    def mean(x: np.ndarray, y: np.ndarray, own: bool) -> float:
        pairs = [
            (x[i] @ y[j] / x.shape[1] + 1) ** 3
            for i in range(len(x)) for j in range(len(y)) if not own or i != j
        ]  # fmt: skip
        return float(np.mean(pairs))

    return mean(real, real, True) + mean(fake, fake, True) - 2 * mean(real, fake, False)


def test_kid_is_the_formula_over_all_pairs() -> None:
    real, fake = draw(30, 6, 0), draw(20, 6, 1, 0.5)
    found = kernel_distance(real, fake)
    assert found.value == pytest.approx(naive_kid(real.numpy(), fake.numpy()), rel=1e-9)
    assert found.low is not None
    assert found.high is not None
    assert found.low < found.value < found.high


def test_kid_of_many_images_is_the_mean_of_blocks(monkeypatch) -> None:
    monkeypatch.setattr(distributions, "_BLOCK", 10)
    monkeypatch.setattr(distributions, "_shuffled", lambda images, _generator: images)
    real, fake = draw(30, 6, 0), draw(21, 6, 1, 0.5)
    blocks = [
        naive_kid(a.numpy(), b.numpy())
        for a, b in zip(real.tensor_split(3), fake.tensor_split(3), strict=True)
    ]
    found = kernel_distance(real, fake)
    assert found.value == pytest.approx(np.mean(blocks), rel=1e-9)


def of_classes(num: int, seed: int) -> Tensor:
    """Features [num, 4] of four classes far apart, one class after the other."""
    generator = torch.Generator().manual_seed(seed)
    centres = 3 * torch.eye(4).repeat_interleave(num // 4, dim=0)
    return (centres + 0.3 * torch.randn(num, 4, generator=generator)).double()


@pytest.mark.parametrize("ordered", ["reference", "samples"])
def test_kid_of_many_images_does_not_depend_on_their_order(ordered) -> None:
    """Mixtures that are alike are 0 apart; blocks of a class against blocks of all are 8 apart."""
    real, fake = of_classes(1200, 0), of_classes(2000, 1)
    mixed = torch.Generator().manual_seed(2)
    shuffled = [one[torch.randperm(len(one), generator=mixed)] for one in (real, fake)]
    pair = [real, shuffled[1]] if ordered == "reference" else [shuffled[0], fake]
    found, expected = kernel_distance(*pair), kernel_distance(*shuffled)
    assert found.low is not None
    assert found.high is not None
    assert found.low <= 0 <= found.high
    assert found.low <= expected.value <= found.high
    assert found.high - found.low < 0.5


def test_kid_is_that_of_torchmetrics_for_equal_numbers() -> None:
    real, fake = draw(30, 6, 0), draw(30, 6, 1, 0.5)
    expected = poly_mmd(real, fake).item()
    assert kernel_distance(real, fake).value == pytest.approx(expected, rel=1e-9)


def test_the_inception_score_is_the_formula() -> None:
    logits = draw(50, 10, 0)
    p = np.exp(logits.numpy())
    p /= p.sum(1, keepdims=True)
    divergences = (p * (np.log(p) - np.log(p.mean(0)))).sum(1)
    found = inception_score(logits)
    assert found.value == pytest.approx(np.exp(divergences.mean()), rel=1e-12)


def test_the_inception_score_knows_its_ends() -> None:
    sure = torch.eye(10).repeat(3, 1) * 1000
    assert inception_score(sure).value == pytest.approx(10)
    assert inception_score(torch.zeros(5, 10)).value == pytest.approx(1)
    assert inception_score(sure[:1]).value == pytest.approx(1)


def naive_among(points: np.ndarray, others: np.ndarray) -> list[bool]:
    reach = np.sort(cdist(others, others), axis=1)[:, 3]
    return [bool((cdist(point[None], others)[0] <= reach).any()) for point in points]


def test_precision_and_recall_are_the_definition(monkeypatch) -> None:
    monkeypatch.setattr(distributions, "_ROWS", 7)  # several blocks of rows
    real, fake = draw(40, 4, 0), draw(30, 4, 1, 2.0)
    inside, covered = precision(real, fake), recall(real, fake)
    assert inside.tolist() == naive_among(fake.numpy(), real.numpy())
    assert covered.tolist() == naive_among(real.numpy(), fake.numpy())
    assert 0 < inside.double().mean() < 1
    assert 0 < covered.double().mean() < 1


def test_few_images_have_fewer_neighbours() -> None:
    two = torch.tensor([[0.0], [1.0]])
    assert distributions._radii(two).tolist() == [1.0, 1.0]
    assert precision(two, torch.tensor([[1.9], [2.1]])).tolist() == [True, False]


def test_what_was_seen_is_joined_over_batches() -> None:
    parts = [Features(draw(3, 4, i), draw(3, 5, i), draw(3, 2, i)) for i in range(2)]
    both = joined_features(parts)
    assert torch.equal(both.pooled, torch.cat([part.pooled for part in parts]))
    assert [tensor.shape for tensor in both] == [(6, 4), (6, 5), (6, 2)]
