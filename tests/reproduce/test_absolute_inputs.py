"""Mean and maximum of |X| against float64, in any rank and order."""

from __future__ import annotations

import pytest
import torch

from ditprune.reproduce.look import AbsoluteInputs


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_it_is_the_mean_and_the_maximum_of_all_values() -> None:
    first, second = draw(2, 7, 5), draw(3, 5, seed=1) * 100
    state = AbsoluteInputs().add(first).add(second)
    values = torch.cat([first.flatten(), second.flatten()]).double().abs()
    assert state.count == len(values) == 85
    assert state.mean == pytest.approx(values.mean().item(), rel=1e-6)
    assert state.largest == pytest.approx(values.max().item())


def test_half_precision_is_summed_in_full() -> None:
    state = AbsoluteInputs().add(torch.full((4096, 64), 0.5, dtype=torch.bfloat16))
    assert (state.mean, state.largest) == (0.5, 0.5)


def test_nothing_adds_nothing() -> None:
    state = AbsoluteInputs().add(draw(4, 3))
    assert state.add(torch.empty(0, 3)) == state
    assert AbsoluteInputs().mean == 0
