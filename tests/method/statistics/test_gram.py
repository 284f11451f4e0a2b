"""Grams against float64, over any shape and dtype, and mergeable without loss."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from ditprune.method.statistics.column_norm import finish_norm, start_norm, update_norm
from ditprune.method.statistics.gram import Gram, finish_gram, merge_grams, start_gram, update_gram


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Channels that go together, of different sizes, as in trained models."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(*shape, generator=generator)
    scale = torch.logspace(-2, 2, shape[-1])
    return (scale * (inputs + inputs.mean(-1, keepdim=True))).to(dtype)


def observe(*inputs: Tensor, dtype: torch.dtype = torch.float32) -> Gram:
    state = start_gram(inputs[0].shape[-1], dtype=dtype)
    for one in inputs:
        state = update_gram(state, one)
    return state


def check(state: Gram, inputs: Tensor) -> None:
    tokens = inputs.double().reshape(-1, inputs.shape[-1])
    assert state.num_tokens == len(tokens)
    expected = tokens.T @ tokens
    size = expected.diagonal().sqrt()
    error = (state.sum_products.double() - expected).abs()
    assert (error <= 3e-6 * size[:, None] * size).all()
    finished = finish_gram(state)
    assert finished.dtype == torch.float32
    torch.testing.assert_close(finished, finished.T, rtol=0, atol=0)
    assert ((finished.double() - expected).abs() <= 3e-6 * size[:, None] * size).all()


@pytest.mark.parametrize("num_tokens", [0, 1, 4095, 4096, 4097, 20_000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equals_float64_for_any_number_of_tokens(num_tokens: int, dtype: torch.dtype) -> None:
    inputs = draw(num_tokens, 7)
    state = observe(inputs, dtype=dtype)
    assert state.sum_products.dtype == dtype
    check(state, inputs)


@pytest.mark.parametrize("shape", [(5,), (130, 5), (3, 70, 5), (2, 3, 40, 5)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_equals_float64_for_any_rank_and_dtype(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    inputs = draw(*shape, dtype=dtype)
    check(observe(inputs), inputs)


def test_products_that_overflow_half_precision_are_summed() -> None:
    inputs = torch.full((300, 2), 60_000.0, dtype=torch.float16)
    check(observe(inputs), inputs)


def test_a_constant_input_is_not_lost_in_a_long_float64_sum() -> None:
    """A float32 running sum stops growing at 2²⁴."""
    state = observe(*[torch.ones(2**22, 1)] * 6, dtype=torch.float64)
    assert state.sum_products.item() == 6 * 2**22


def test_its_diagonal_is_the_column_norm() -> None:
    inputs = draw(300, 9)
    norm = finish_norm(update_norm(start_norm(9), inputs))
    torch.testing.assert_close(finish_gram(observe(inputs)).diagonal().sqrt(), norm)


def test_updates_in_any_order_equal_one_update() -> None:
    inputs = draw(640, 9)
    check(observe(*inputs.split(50)), inputs)
    check(observe(*inputs.split(50)[::-1]), inputs)


def test_merge_equals_all_at_once(same_bits) -> None:
    inputs = draw(640, 9)
    first, second = observe(inputs[:256]), observe(inputs[256:])
    check(merge_grams(first, second), inputs)
    with_nothing = merge_grams(start_gram(9), first)
    same_bits(with_nothing.sum_products, first.sum_products)
    assert with_nothing.num_tokens == 256


def test_a_state_is_a_value(same_bits) -> None:
    state = observe(draw(10, 4))
    before = state.sum_products.clone()
    update_gram(state, draw(10, 4, seed=1))
    merge_grams(state, state)
    finish_gram(state).zero_()
    same_bits(state.sum_products, before)
    assert state.num_tokens == 10


def test_inputs_with_a_graph_are_detached() -> None:
    assert not observe(draw(70, 4).requires_grad_()).sum_products.requires_grad


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_nan_or_inf_shows_in_the_sums(value: float) -> None:
    inputs = draw(70, 3)
    inputs[69, 1] = value
    finite = observe(inputs).sum_products.isfinite()
    assert not finite[1].any()
    assert finite[0, 0]
