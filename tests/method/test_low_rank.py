"""The nearest matrices of lower rank under a layer's inputs, and the least rank that will do."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from ditprune.method.low_rank import InputSpread, LowRankFit, RankProblem, rank_at

OUT, IN = 40, 24


def drawn(num: int = 400, num_directions: int = IN, seed: int = 0) -> Tensor:
    """Inputs around a mean, ever shorter along other directions."""
    generator = torch.Generator().manual_seed(seed)
    turn = torch.linalg.qr(torch.randn(IN, IN, generator=torch.Generator().manual_seed(9))).Q
    lengths = 0.5 ** torch.arange(IN) * (torch.arange(IN) < num_directions)
    return torch.randn(num, IN, generator=generator) * lengths @ turn + 0.3


def problem(dtype: torch.dtype = torch.float32, num_directions: int = IN) -> RankProblem:
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(OUT, IN, generator=generator).to(dtype)
    bias = torch.randn(OUT, generator=generator).to(dtype)
    spread = InputSpread.of(drawn(num_directions=num_directions))
    aside = drawn(100, num_directions, seed=2)
    return RankProblem(weight, bias, spread, aside, OUT * IN, dtype)


def outputs(fit: LowRankFit, inputs: Tensor) -> Tensor:
    return inputs.double() @ fit.down.double().T @ fit.up.double().T + fit.bias.double()


def error_of(fit: LowRankFit, of: RankProblem) -> float:
    assert of.bias is not None
    dense = of.aside.double() @ of.weight.double().T + of.bias.double()
    return float((outputs(fit, of.aside) - dense).square().sum() / dense.square().sum())


def test_they_are_the_nearest_under_the_covariance_of_the_inputs() -> None:
    given = problem()
    fit = given.at_share(0.5)
    inputs = drawn()
    factor = torch.linalg.cholesky(torch.cov(inputs.double().T, correction=0))
    u, s, vt = torch.linalg.svd(given.weight.double() @ factor)
    rank = fit.rank
    expected = u[:, :rank] * s[:rank] @ vt[:rank] @ torch.linalg.inv(factor)
    torch.testing.assert_close(fit.up.double() @ fit.down.double(), expected, rtol=0, atol=1e-4)
    mean = inputs.double().mean(0)
    dense_mean = given.weight.double() @ mean + given.bias.double()
    torch.testing.assert_close(outputs(fit, mean[None])[0], dense_mean, rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("num_directions", [IN, 3, 0], ids=["all", "few", "no directions"])
def test_the_error_is_that_of_the_matrices_as_they_are_kept(
    dtype: torch.dtype, num_directions: int
) -> None:
    given = problem(dtype, num_directions)
    fit = given.at_share(0.4)
    assert fit.down.dtype == fit.up.dtype == fit.bias.dtype == dtype
    assert fit.error == pytest.approx(error_of(fit, given), rel=1e-6, abs=1e-20)
    assert fit.num_weights <= 0.6 * OUT * IN
    assert (fit.rank, fit.share) == (8, pytest.approx(1 - 8 * (OUT + IN) / (OUT * IN)))
    assert fit.error < (1e-4 if dtype == torch.bfloat16 or num_directions == IN else 1e-12)


@pytest.mark.parametrize("error", [1e-2, 1e-4, 1e-5])
def test_the_least_rank_keeps_the_error_and_a_smaller_one_does_not(error: float) -> None:
    given = problem()
    fit = given.within(error)
    assert isinstance(fit, LowRankFit)
    assert error_of(fit, given) <= error
    assert fit.rank == 8
    many = RankProblem(
        given.weight, given.bias, InputSpread.of(torch.randn(300, IN)), torch.randn(50, IN),
        10 * OUT * IN, torch.float32,
    )  # fmt: skip
    wide = many.within(0.05)
    assert isinstance(wide, LowRankFit)
    assert wide.rank % 8 == 0
    assert error_of(wide, many) <= 0.05
    before = many.at_share(1 - (wide.rank - 8) * (OUT + IN) / many.num_weights)
    assert before.rank == wide.rank - 8
    assert error_of(before, many) > 0.05


def test_a_layer_that_needs_its_rank_says_so() -> None:
    generator = torch.Generator().manual_seed(0)
    weight, inputs = torch.randn(OUT, IN, generator=generator), torch.randn(300, IN)
    spread = InputSpread.of(inputs)
    assert RankProblem(weight, None, spread, inputs, OUT * IN, torch.float32).within() == IN


def test_rounding_counts_towards_the_error() -> None:
    """A rank whose matrices are within the error before they are rounded, and not after."""
    given = problem(torch.bfloat16)
    given = dataclasses.replace(given, num_weights=10 * OUT * IN)
    exact = dataclasses.replace(given, dtype=torch.float32).within(6e-6)
    rounded = given.within(6e-6)
    assert isinstance(exact, LowRankFit)
    assert isinstance(rounded, LowRankFit)
    assert (exact.rank, rounded.rank) == (8, 16)
    assert error_of(rounded, given) <= 6e-6
    assert given.within(1e-6) == IN  # rounding alone is more


def test_a_weight_that_is_of_low_rank_needs_no_more() -> None:
    weight = torch.randn(OUT, 11) @ torch.randn(11, IN)
    inputs = torch.randn(300, IN)
    fit = RankProblem(
        weight, None, InputSpread.of(inputs), inputs, 10 * OUT * IN, torch.float32
    ).within()
    assert isinstance(fit, LowRankFit)
    assert fit.rank == 16
    assert fit.error < 1e-12


@pytest.mark.parametrize("bias", [None, torch.zeros(OUT)], ids=["no bias", "zeros"])
def test_a_layer_of_zeros_stays_one(bias: Tensor | None) -> None:
    inputs = drawn()
    fit = RankProblem(
        torch.zeros(OUT, IN), bias, InputSpread.of(inputs), inputs, OUT * IN, torch.float32
    ).within()
    assert isinstance(fit, LowRankFit)
    assert fit.error == 0
    assert outputs(fit, inputs).abs().max() == 0


def test_ranks_at_shares() -> None:
    assert rank_at(0.75, 160 * 960, 960, 160) == 32
    assert rank_at(0.75, 3072 * 18432, 18432, 3072) == 656
    assert rank_at(0.5, 8 * 192, 192, 8) == 3  # below a multiple it is what goes
    assert rank_at(0.99, 32 * 32, 32, 32) == 0
