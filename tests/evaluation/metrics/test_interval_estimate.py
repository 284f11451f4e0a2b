"""Bootstrap intervals: as wide as theory says, about the value, the same every time."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.stats import binomtest

from ditprune.evaluation.metrics import interval as estimate
from ditprune.evaluation.metrics import per_image
from ditprune.evaluation.metrics.interval import Estimate, bootstrap, differ, overlap, resamples
from ditprune.evaluation.metrics.per_image import PerImage


def normal(num: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(num, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_resamples_are_counts_of_as_many_items() -> None:
    drawn = list(resamples(50, 7, seed=3))
    assert len(drawn) == 7
    assert all(w.sum() == 50 and w.min() >= 0 and len(w) == 50 for w in drawn)
    assert not torch.equal(drawn[0], drawn[1])
    again = resamples(50, 7, seed=3)
    assert all(torch.equal(a, b) for a, b in zip(drawn, again, strict=True))


@pytest.mark.parametrize("num_resamples", [200, 20])
def test_the_interval_of_a_mean_is_two_standard_errors_wide(num_resamples) -> None:
    values = normal(400)
    found = bootstrap(values.mean().item(), lambda weights: (weights @ values).item() / 400, 400,
                      num_resamples=num_resamples, is_mean=True)  # fmt: skip
    if num_resamples == 200:
        assert found == per_image.compute(per_image.update(PerImage(), values))
    error = values.std().item() / math.sqrt(400)
    assert found.value == pytest.approx(values.mean().item(), rel=1e-12)
    assert found.low is not None
    assert found.high is not None
    assert found.low == pytest.approx(found.value - 1.96 * error, abs=0.6 * error)
    assert found.high == pytest.approx(found.value + 1.96 * error, abs=0.6 * error)


def test_an_interval_lies_about_a_value_that_resamples_overstate() -> None:
    """The variance of a resample is too small by (n − 1) / n: here by a fifth."""
    values = normal(5)

    def variance(weights: torch.Tensor) -> float:
        mean = weights @ values / 5
        return (weights @ (values - mean).square() / 5).item()

    value = 10.0
    found = bootstrap(value, variance, 5)
    assert found.low is not None
    assert found.high is not None
    assert found.low < value < found.high
    raised = bootstrap(0.1, variance, 5, lowest=0.05)
    assert raised.low == 0.05


def test_one_item_has_no_interval() -> None:
    assert per_image.compute(PerImage((2.5,))) == Estimate(2.5)


def test_batches_do_not_matter() -> None:
    values = normal(30)
    whole = per_image.update(PerImage(), values)
    parts = PerImage()
    for batch in values.split(7):
        parts = per_image.update(parts, batch)
    assert per_image.compute(parts, 1) == per_image.compute(whole, 1)
    assert per_image.compute(parts, 1) != per_image.compute(whole, 2)


@pytest.mark.parametrize(
    ("two", "is_so"),
    [
        (Estimate(3, 2.5, 3.5), False),
        (Estimate(3, 2.0, 3.5), True),
        (Estimate(1, 0.0, 0.5), True),
        (Estimate(0, -1, -0.1), False),
        (Estimate(9), True),
    ],
)
def test_intervals_overlap_where_they_share_a_point(two, is_so) -> None:
    one = Estimate(1, 0.0, 2.0)
    assert overlap(one, two) is overlap(two, one) is is_so


def test_means_over_the_same_items_differ_where_every_item_does() -> None:
    hard = normal(60).tolist()
    assert differ(hard, [value - 0.01 for value in hard])
    assert differ([value - 0.01 for value in hard], hard)
    assert not differ(hard, (normal(60, 1)).tolist())
    assert not differ(hard, hard)
    assert not differ([1.0], [2.0])


@pytest.mark.parametrize("num_right", [0, 1, 450, 500])
def test_a_share_has_wilsons_interval(num_right: int) -> None:
    found = per_image.compute_share(PerImage((1.0,) * num_right + (0.0,) * (500 - num_right)))
    ends = binomtest(num_right, 500).proportion_ci(0.95, "wilson")
    assert found.value == num_right / 500
    assert (found.low, found.high) == pytest.approx((ends.low, ends.high), abs=1e-7)


def test_one_image_has_no_share() -> None:
    assert per_image.compute_share(PerImage((1.0,))) == Estimate(1.0)


@pytest.mark.parametrize(
    ("num_lost", "num_won"), [(1, 0), (5, 0), (6, 0), (0, 6), (4, 4), (9, 2), (10, 2), (700, 600)]
)
def test_shares_over_the_same_items_differ_by_the_exact_test(num_lost: int, num_won: int) -> None:
    one = [1.0] * num_lost + [0.0] * num_won + [1.0] * 400 + [0.0] * 30
    two = [0.0] * num_lost + [1.0] * num_won + [1.0] * 400 + [0.0] * 30
    expected = binomtest(num_lost, num_lost + num_won).pvalue < 0.05
    assert all(differ(one, two, seed) == expected for seed in range(5))


def test_the_interval_of_a_mean_reaches_0_where_few_items_are_not_0() -> None:
    """A third of the resamples have none of one item in 500; their mean is 0 and no less."""
    found = estimate.mean(torch.tensor([0.3] + [0.0] * 499, dtype=torch.float64))
    assert found.low == 0.0
