"""Clustering-aware granularity: its measure, its threshold and what it chooses."""

from __future__ import annotations

import math

import pytest
import torch

from ditprune.method.granularity import (
    CAG,
    PerChannel,
    PerLayer,
    automatic_threshold,
    heterogeneity,
)


def test_heterogeneity_is_equation_ten() -> None:
    scores = torch.rand(37, 53, generator=torch.Generator().manual_seed(0)) ** 3
    rows = [sum(row) / len(row) for row in scores.double().tolist()]
    mean = sum(rows) / len(rows)
    expected = sum((row - mean) ** 2 for row in rows) / len(rows) / mean**2
    assert heterogeneity(scores) == pytest.approx(expected, rel=1e-5)


def test_heterogeneity_grows_with_the_spread_between_channels_only() -> None:
    within = torch.arange(1.0, 9).repeat(4, 1)
    assert heterogeneity(within) == 0
    between = torch.tensor([1.0, 3.0])[:, None] * within[:2]
    assert heterogeneity(between) == pytest.approx(0.25)  # means 1 and 3: variance 1, mean 2


def test_heterogeneity_ignores_the_unit_of_the_scores() -> None:
    scores = torch.rand(8, 16, generator=torch.Generator().manual_seed(1))
    assert heterogeneity(scores * 1e-6) == pytest.approx(heterogeneity(scores), rel=1e-5)


def test_heterogeneity_of_zeros_is_zero() -> None:
    assert heterogeneity(torch.zeros(3, 4)) == 0


def test_small_heterogeneity_goes_per_layer_and_large_per_channel() -> None:
    cag = CAG(0.3)
    assert cag.choose(0.05, 0.3) == PerLayer()
    assert cag.choose(1.7, 0.3) == PerChannel()
    assert cag.choose(0.3, 0.3) == PerChannel()
    assert cag.choose(1e9, math.inf) == PerLayer()


def test_a_fixed_threshold_is_the_number_given() -> None:
    assert CAG(0.7).threshold({"a": 0.01, "b": 5.0}) == 0.7
    assert CAG(0).threshold({}) == 0


def test_the_automatic_threshold_halves_the_largest_gap_of_the_logarithms() -> None:
    g_out = {"q": 0.01, "mod": 1.6, "k": 0.02, "mlp": 0.04, "mod2": 3.2}
    expected = math.sqrt(0.04 * 1.6)
    assert CAG("auto").threshold(g_out) == pytest.approx(expected)
    assert automatic_threshold(dict(reversed(g_out.items()))) == pytest.approx(expected)


def test_the_automatic_threshold_counts_ratios_not_differences() -> None:
    assert automatic_threshold({"a": 0.01, "b": 0.1, "c": 0.7}) == pytest.approx(math.sqrt(0.001))


def test_the_automatic_threshold_sets_zeros_aside() -> None:
    assert automatic_threshold({"z": 0.0, "a": 0.1, "b": 1.0}) == pytest.approx(math.sqrt(0.1))


@pytest.mark.parametrize(
    "values", [(), (0.5,), (0.0, 0.0), (0.0, 0.5), (0.5, 0.5), (0.1, 0.19, 0.37)]
)
def test_without_a_gap_of_two_everything_goes_per_layer(values: tuple[float, ...]) -> None:
    g_out = {str(i): value for i, value in enumerate(values)}
    assert automatic_threshold(g_out) is None


def test_a_gap_of_two_is_enough() -> None:
    assert automatic_threshold({"a": 0.1, "b": 0.21}) == pytest.approx(math.sqrt(0.021))
