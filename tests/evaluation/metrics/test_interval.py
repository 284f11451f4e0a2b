"""Bootstrap intervals: as wide as theory says, about the value, the same every time."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.stats import binomtest

from ditprune.evaluation.metrics.interval import (
    Interval,
    bootstrap,
    differ,
    mean_interval,
    overlap,
    resamples,
    share_interval,
)


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
        assert found == mean_interval(values.tolist())
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
    assert mean_interval([2.5]) == Interval(2.5)


def test_the_interval_depends_on_the_seed_alone() -> None:
    values = normal(30).tolist()
    assert mean_interval(values, 1) == mean_interval(values, 1)
    assert mean_interval(values, 1) != mean_interval(values, 2)


@pytest.mark.parametrize(
    ("two", "is_so"),
    [
        (Interval(3, 2.5, 3.5), False),
        (Interval(3, 2.0, 3.5), True),
        (Interval(1, 0.0, 0.5), True),
        (Interval(0, -1, -0.1), False),
        (Interval(9), True),
    ],
)
def test_intervals_overlap_where_they_share_a_point(two, is_so) -> None:
    one = Interval(1, 0.0, 2.0)
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
    found = share_interval([1.0] * num_right + [0.0] * (500 - num_right))
    ends = binomtest(num_right, 500).proportion_ci(0.95, "wilson")
    assert found.value == num_right / 500
    assert (found.low, found.high) == pytest.approx((ends.low, ends.high), abs=1e-7)


def test_one_image_has_no_share() -> None:
    assert share_interval([1.0]) == Interval(1.0)


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
    found = mean_interval([0.3] + [0.0] * 499)
    assert found.low == 0.0
