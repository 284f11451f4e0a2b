"""Clustering-aware granularity: its measure, its threshold and what it chooses."""

from __future__ import annotations

import pytest
import torch

from ditprune.method.granularity import (
    CAG,
    PerChannel,
    PerLayer,
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


def test_from_the_threshold_on_it_is_per_channel() -> None:
    assert CAG(0.7).choose(0.69) == PerLayer()
    assert CAG(1e9).choose(5.0) == PerLayer()
    assert CAG(0.7).choose(0.7) == PerChannel()
    assert CAG(0).choose(0) == PerChannel()
