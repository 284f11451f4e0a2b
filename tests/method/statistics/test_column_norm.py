"""Column norms against float64, over any shape and dtype, and mergeable without loss."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from ditprune.method.statistics.column_norm import (
    ColumnNorm,
    finish_norm,
    merge_norms,
    start_norm,
    update_norm,
)


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Channels of very different sizes, as in trained models."""
    generator = torch.Generator().manual_seed(seed)
    scale = torch.logspace(-3, 3, shape[-1])
    return (scale * torch.randn(*shape, generator=generator)).to(dtype)


def observe(*inputs: Tensor) -> ColumnNorm:
    state = start_norm(inputs[0].shape[-1])
    for one in inputs:
        state = update_norm(state, one)
    return state


def check(state: ColumnNorm, inputs: Tensor) -> None:
    tokens = inputs.double().reshape(-1, inputs.shape[-1])
    assert state.num_tokens == len(tokens)
    assert state.sum_squares.dtype == torch.float64
    expected = tokens.square().sum(0).sqrt()
    torch.testing.assert_close(state.sum_squares.sum(0).sqrt(), expected, rtol=1e-6, atol=0)
    norm = finish_norm(state)
    assert norm.dtype == torch.float32
    torch.testing.assert_close(norm.double(), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("num_tokens", [0, 1, 63, 64, 65, 200, 100_000])
def test_equals_float64_for_any_number_of_tokens(num_tokens: int) -> None:
    inputs = draw(num_tokens, 7)
    check(observe(inputs), inputs)


@pytest.mark.parametrize("shape", [(5,), (130, 5), (3, 70, 5), (2, 3, 40, 5)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_equals_float64_for_any_rank_and_dtype(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    inputs = draw(*shape, dtype=dtype)
    check(observe(inputs), inputs)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_squares_that_overflow_half_precision_are_summed(dtype: torch.dtype) -> None:
    inputs = torch.full((300, 2), 60_000.0, dtype=dtype)
    inputs[0, 0] = 1
    check(observe(inputs), inputs)
    assert finish_norm(observe(inputs)).isfinite().all()


def test_a_constant_input_is_not_lost_in_a_long_sum() -> None:
    """A plain float32 running sum would stop growing at 2²⁴."""
    state = observe(*[torch.ones(2**20, 1)] * 20)
    assert state.sum_squares.item() == 20 * 2**20


@pytest.mark.parametrize("change", ["transposed", "strided", "expanded"])
def test_equals_float64_where_memory_is_not_contiguous(change: str) -> None:
    inputs = {
        "transposed": draw(9, 150).T,
        "strided": draw(300, 18)[::2, ::3],
        "expanded": draw(1, 5).expand(100, 5),
    }[change]
    assert not inputs.is_contiguous()
    check(observe(inputs), inputs)


def test_updates_one_after_another_equal_one_update() -> None:
    inputs = draw(128 * 7, 9)
    parts = observe(*inputs.split(128))
    torch.testing.assert_close(parts.sum_squares, observe(inputs).sum_squares, rtol=2e-7, atol=0)
    check(observe(*inputs.split(50)), inputs)


def test_merge_equals_all_at_once() -> None:
    inputs = draw(640, 9)
    first, second = observe(inputs[:256]), observe(inputs[256:])
    merged, whole = merge_norms(first, second), observe(inputs)
    assert merged.num_tokens == whole.num_tokens == 640
    torch.testing.assert_close(merged.sum_squares, whole.sum_squares, rtol=2e-7, atol=0)


def test_merge_with_nothing_changes_nothing(same_bits) -> None:
    state = observe(draw(77, 4))
    merged = merge_norms(start_norm(4), state)
    same_bits(merged.sum_squares, state.sum_squares)
    assert merged.num_tokens == state.num_tokens


def test_the_order_of_tokens_does_not_matter() -> None:
    inputs = draw(1000, 6)
    check(observe(*inputs.split(100)[::-1]), inputs)
    shuffled = inputs[torch.randperm(1000, generator=torch.Generator().manual_seed(3))]
    check(observe(shuffled), inputs)


def test_a_state_is_a_value(same_bits) -> None:
    state = observe(draw(10, 4))
    before = state.sum_squares.clone()
    update_norm(state, draw(10, 4, seed=1))
    merge_norms(state, state)
    finish_norm(state)
    same_bits(state.sum_squares, before)
    assert state.num_tokens == 10


def test_inputs_with_a_graph_are_detached() -> None:
    assert not observe(draw(70, 4).requires_grad_()).sum_squares.requires_grad


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("row", [0, 69])
def test_a_nan_or_inf_shows_in_the_sums(value: float, row: int) -> None:
    inputs = draw(70, 3)
    inputs[row, 1] = value
    assert observe(inputs).sum_squares[0].isfinite().tolist() == [True, False, True]


def test_the_order_of_updates_does_not_change_a_bit(same_bits) -> None:
    """So that several processes, and a run that was stopped, give the same masks."""
    parts = draw(128 * 40, 9).split(128)
    forward, backward = observe(*parts), observe(*parts[::-1])
    same_bits(forward.sum_squares, backward.sum_squares)
    some = merge_norms(observe(*parts[1::2]), observe(*parts[::2]))
    same_bits(some.sum_squares, forward.sum_squares)


def test_nor_where_amplitudes_spread_over_a_billion(same_bits) -> None:
    """Their squares spread over more bits than a float64 has."""
    generator = torch.Generator().manual_seed(0)
    sizes = 10 ** (9 * torch.rand(40, 1, 1, generator=generator) - 3)
    parts = list(sizes * torch.randn(40, 70, 9, generator=generator))
    forward, backward = observe(*parts), observe(*parts[::-1])
    shared = [observe(*parts[first::3]) for first in (2, 0, 1)]
    merged = merge_norms(merge_norms(*shared[:2]), shared[2])
    for state in (backward, merged):
        same_bits(state.sum_squares, forward.sum_squares)
        same_bits(state.rest, forward.rest)
    check(forward, torch.cat(parts))
    assert forward.rest.any()


@pytest.mark.parametrize("scale", [1e-37, 1e-22, 1e18, 1e37])
def test_squares_beyond_float32_are_summed(scale: float) -> None:
    inputs = draw(200, 5).sign() * scale
    inputs[:, 4] = 0
    check(observe(*inputs.split(90)), inputs)


def test_bins_are_kept_apart_and_add_up(same_bits) -> None:
    inputs = draw(30, 4)
    state = start_norm(4, num_bins=3)
    for index, part in ((2, inputs[:10]), (0, inputs[10:15]), (2, inputs[15:])):
        state = update_norm(state, part, index)
    assert state.tokens_in_bin == (5, 0, 25)
    assert state.num_tokens == 30
    same_bits(state.sum_squares[1], torch.zeros(4, dtype=torch.float64))
    for index, tokens in ((0, inputs[10:15]), (2, torch.cat([inputs[:10], inputs[15:]]))):
        expected = tokens.double().square().sum(0)
        torch.testing.assert_close(state.sum_squares[index], expected, rtol=1e-6, atol=0)
    expected = inputs.double().square().sum(0).sqrt().float()
    torch.testing.assert_close(finish_norm(state), expected, rtol=1e-6, atol=0)


def test_weights_of_bins_weight_their_squares() -> None:
    inputs = draw(30, 4)
    state = update_norm(start_norm(4, 2), inputs[:10], 0)
    state = update_norm(state, inputs[10:], 1)
    weighted = torch.cat([inputs[:10] * 2, inputs[10:] * 0.5]).double()
    torch.testing.assert_close(
        finish_norm(state, [4.0, 0.25]),
        weighted.square().sum(0).sqrt().float(), rtol=1e-6, atol=0,
    )  # fmt: skip
