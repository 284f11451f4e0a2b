"""Outlier shares by their definition, and sparsities that add up."""

from __future__ import annotations

import pytest
import torch

from ditprune.method.allocation import outlier_share, sparsities


def test_outliers_are_counted_above_the_ratio() -> None:
    scores = torch.ones(4, 5)
    scores[0, :2] = 100.0
    assert outlier_share(scores) == 2 / 20
    assert outlier_share(scores, ratio=50) == 0
    assert outlier_share(torch.zeros(3, 3)) == 0


def test_more_outliers_keep_more_and_the_mean_is_exact() -> None:
    outliers = {"few": 0.01, "some": 0.02, "many": 0.05}
    sizes = {"few": 100, "some": 300, "many": 50}
    shares = sparsities(outliers, sizes, 0.7)
    assert shares["few"] > shares["some"] > shares["many"]
    assert max(shares.values()) - min(shares.values()) == pytest.approx(0.16)
    assert sum(shares[n] * sizes[n] for n in sizes) / 450 == pytest.approx(0.7)


def test_targets_alike_get_the_sparsity_itself() -> None:
    assert sparsities({"a": 0.1, "b": 0.1}, {"a": 5, "b": 9}, 0.5) == {"a": 0.5, "b": 0.5}


@pytest.mark.parametrize("sparsity", [0.0, 0.03, 0.97])
def test_shares_stay_shares(sparsity) -> None:
    shares = sparsities({"a": 0.0, "b": 0.3}, {"a": 1, "b": 9}, sparsity)
    assert all(0 <= share <= 1 for share in shares.values())
    assert (shares["a"] + 9 * shares["b"]) / 10 == pytest.approx(sparsity)
