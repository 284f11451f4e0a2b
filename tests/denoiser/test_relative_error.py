"""Relative error of predicted noise: the definition, over any split into calls."""

from __future__ import annotations

import pytest
import torch

from ditprune.denoiser.relative_error import RelativeError, compute, update


def noise(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_it_is_the_ratio_of_mean_squares() -> None:
    dense, pruned = noise(0, 10, 4, 8, 8), noise(1, 10, 4, 8, 8)
    naive = ((pruned - dense) ** 2).mean() / (dense**2).mean()
    state = update(RelativeError(), pruned, dense)
    assert compute(state) == pytest.approx(naive.item(), rel=1e-6)
    parts = RelativeError()
    for i in (slice(0, 3), slice(3, 4), slice(4, 10)):
        parts = update(parts, pruned[i], dense[i])
    assert compute(parts) == pytest.approx(compute(state), rel=1e-12)


def test_it_is_not_symmetric_and_knows_its_ends() -> None:
    dense = noise(0, 3, 4)
    assert compute(update(RelativeError(), dense, dense)) == 0.0
    assert compute(update(RelativeError(), torch.zeros(3, 4), dense)) == 1.0
    assert compute(update(RelativeError(), 3 * dense, dense)) == pytest.approx(4.0)
    assert compute(update(RelativeError(), dense, 3 * dense)) == pytest.approx(4 / 9)


def test_half_precision_is_summed_in_double() -> None:
    dense = torch.full((300, 300), 100.0, dtype=torch.float16)
    assert compute(update(RelativeError(), dense * 2, dense)) == 1.0
