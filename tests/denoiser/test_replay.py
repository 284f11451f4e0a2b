"""Relative error of predicted noise: the definition, over any split into calls."""

from __future__ import annotations

import pytest
import torch

from ditprune.denoiser.replay import relative_error


def noise(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_it_is_the_ratio_of_mean_squares() -> None:
    dense, pruned = noise(0, 10, 4, 8, 8), noise(1, 10, 4, 8, 8)
    naive = ((pruned - dense) ** 2).mean() / (dense**2).mean()
    whole = relative_error([(pruned, dense)])
    assert whole == pytest.approx(naive.item(), rel=1e-6)
    parts = [(pruned[i], dense[i]) for i in (slice(0, 3), slice(3, 4), slice(4, 10))]
    assert relative_error(parts) == pytest.approx(whole, rel=1e-12)


def test_it_is_not_symmetric_and_knows_its_ends() -> None:
    dense = noise(0, 3, 4)
    assert relative_error([(dense, dense)]) == 0.0
    assert relative_error([(torch.zeros(3, 4), dense)]) == 1.0
    assert relative_error([(3 * dense, dense)]) == pytest.approx(4.0)
    assert relative_error([(dense, 3 * dense)]) == pytest.approx(4 / 9)


def test_half_precision_is_summed_in_double() -> None:
    dense = torch.full((300, 300), 100.0, dtype=torch.float16)
    assert relative_error([(dense * 2, dense)]) == 1.0
