"""ADMM and the solution on the support against a naive one, row by row."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ditprune.method.reconstruction.admm import ADMM, solve_on_support
from ditprune.method.reconstruction.layer import Nothing
from ditprune.method.reconstruction.obs import OBS
from layer_problems import any_mask, choice, error_of, layer

GROUPS = ("layer", "channel", "2:4")


def exact_on_support(target: Tensor, gram: Tensor, keep: Tensor) -> Tensor:
    """min ½ z H zᵀ − b zᵀ on each row's own support, by a factorisation for each."""
    solution = torch.zeros_like(target, dtype=torch.float64)
    for row, stays in enumerate(keep):
        own = gram.double()[stays][:, stays]
        solution[row, stays] = torch.linalg.solve(own, target[row, stays].double())
    return solution.float()


def least_squares(weight: Tensor, gram: Tensor, keep: Tensor) -> Tensor:
    return exact_on_support(weight @ gram, gram, keep)


def test_conjugate_gradients_reach_the_exact_solution() -> None:
    """In no more steps than there are unknowns, as steepest descent would not."""
    weight, gram = layer(6, 20)
    keep = any_mask(weight.shape)
    keep[0], keep[1] = False, True
    gram /= gram.diagonal().sqrt()[:, None] * gram.diagonal().sqrt()
    target = weight @ gram
    got = solve_on_support(weight * keep, target, gram, keep, 20)
    torch.testing.assert_close(got, exact_on_support(target, gram, keep), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("num_steps", [0, 1, 5, 100])
def test_every_step_lowers_every_row(num_steps: int) -> None:
    weight, gram = layer(6, 20)
    keep = any_mask(weight.shape)
    start, target = weight * keep, weight @ gram

    def objective(z: Tensor) -> Tensor:
        return ((z @ gram / 2 - target).double() * z.double()).sum(1)

    before, after = (
        objective(solve_on_support(start, target, gram, keep, n))
        for n in (num_steps, num_steps + 1)
    )
    assert (after <= before + 1e-5 * before.abs()).all()


@pytest.mark.parametrize("seed", range(3))
def test_on_a_given_mask_it_comes_close_to_least_squares(seed: int) -> None:
    weight, gram = layer(24, 64, seed=seed, num_tokens=500)
    keep = any_mask(weight.shape, seed)
    best = error_of(weight, least_squares(weight, gram, keep), gram)
    got = ADMM()(weight, keep, gram)
    assert best * 0.999 <= got.error <= best * 1.05
    sweep = OBS()(weight, keep, gram)
    assert got.error < sweep.error < error_of(weight, weight * keep, gram)


@pytest.mark.parametrize("groups", GROUPS)
def test_choosing_the_mask_on_the_way_beats_choosing_it_before(groups: str) -> None:
    weight, gram = layer(24, 64, num_tokens=500)
    mask = choice(groups, 0.5, weight.shape)
    before = Nothing()(weight, mask, gram).keep
    got = ADMM()(weight, mask, gram)
    assert got.error < ADMM()(weight, before, gram).error
    assert got.error < OBS()(weight, mask, gram).error


def test_the_last_steps_on_the_support_never_harm() -> None:
    weight, gram = layer(24, 64, num_tokens=500)
    keep = any_mask(weight.shape)
    errors = [ADMM(num_support_steps=n)(weight, keep, gram).error for n in (0, 5, 40)]
    assert errors == sorted(errors, reverse=True)


def test_where_the_inputs_do_not_determine_the_weights_they_stay_near() -> None:
    """Two inputs that are always equal: the one that stays takes over, and does not explode."""
    inputs = torch.randn(100, 3, generator=torch.Generator().manual_seed(0))
    inputs[:, 1] = inputs[:, 0]
    weight = torch.tensor([[1.0, 2.0, 3.0]])
    got = ADMM()(weight, torch.tensor([[True, False, True]]), inputs.T @ inputs)
    torch.testing.assert_close(got.weight, torch.tensor([[3.0, 0, 3.0]]), rtol=1e-2, atol=0)
