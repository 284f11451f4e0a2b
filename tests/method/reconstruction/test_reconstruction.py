"""What every reconstruction promises: exact masks, never worse than zeros, identities."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ditprune.errors import RecipeError, StatisticsError, TargetError
from ditprune.method.masks import keep_best
from ditprune.method.reconstruction import RECONSTRUCTIONS
from ditprune.method.reconstruction.admm import ADMM
from ditprune.method.reconstruction.layer import Choice, Nothing, row_errors
from ditprune.method.reconstruction.obs import OBS
from ditprune.method.statistics.gram import Gram
from layer_problems import GROUPS, any_mask, choice, error_of, layer

METHODS = [Nothing(), OBS(), OBS(block_size=8), ADMM(), ADMM(num_support_steps=0)]
ALL = pytest.mark.parametrize("method", METHODS, ids=repr)


@ALL
@settings(max_examples=40)
@given(
    seed=st.integers(0, 1000),
    groups=st.sampled_from([*GROUPS, "given"]),
    sparsity=st.sampled_from([0.0, 0.1, 0.5, 0.85, 0.97]),
    num_tokens=st.sampled_from([1, 5, 200]),
)
def test_exact_masks_and_never_worse_than_zeros(
    method: Any, seed: int, groups: str, sparsity: float, num_tokens: int
) -> None:
    weight, gram = layer(seed=seed, num_tokens=num_tokens)
    if groups == "given":
        mask: Any = any_mask(weight.shape, seed, 1 - sparsity)
    else:
        mask = choice(groups, sparsity, weight.shape)
    got = method(weight, mask, gram)
    assert got.weight.dtype == torch.float32
    assert got.weight.isfinite().all()
    assert (got.weight[~got.keep] == 0).all()
    if isinstance(mask, Choice):
        kept = got.keep.reshape(-1, mask.group_size).sum(1)
        assert (kept == mask.num_keep).all()
    else:
        assert torch.equal(got.keep, mask)
    error, of_zeros = (error_of(weight, w, gram) for w in (got.weight, weight * got.keep))
    size = error_of(weight, torch.zeros_like(weight), gram)
    assert error <= of_zeros * (1 + 1e-5) + 1e-7 * size
    assert got.error == pytest.approx(error, rel=1e-3, abs=1e-5 * size)


@pytest.mark.parametrize("method", METHODS[1:], ids=repr)
@pytest.mark.parametrize("groups", [*GROUPS, "given"])
def test_an_update_gains_much_where_inputs_go_together(method: Any, groups: str) -> None:
    weight, gram = layer(48, 64, num_tokens=500)
    mask = any_mask(weight.shape) if groups == "given" else choice(groups, 0.5, weight.shape)
    got = method(weight, mask, gram)
    assert got.error < 0.85 * error_of(weight, weight * got.keep, gram)


@ALL
@pytest.mark.parametrize("groups", [*GROUPS, "given"])
def test_inputs_that_do_not_go_together_give_zeros_in_place(method: Any, groups: str) -> None:
    """H = I: nothing can make up for a removed weight, and |W| ranks."""
    weight, _ = layer()
    mask = any_mask(weight.shape) if groups == "given" else choice(groups, 0.5, weight.shape)
    got = method(weight, mask, torch.eye(40))
    torch.testing.assert_close(got.weight, weight * got.keep, rtol=1e-5, atol=1e-6)
    expected = mask(weight.abs()) if isinstance(mask, Choice) else mask
    torch.testing.assert_close(got.keep, expected)


@ALL
def test_nothing_to_remove_changes_nothing(method: Any) -> None:
    weight, gram = layer()
    got = method(weight, torch.ones_like(weight, dtype=torch.bool), gram)
    torch.testing.assert_close(got.weight, weight, rtol=1e-3, atol=1e-4)
    assert got.error < 1e-6 * error_of(weight, torch.zeros_like(weight), gram)


@ALL
@pytest.mark.parametrize("groups", ["layer", "channel", "2:4"])
def test_channels_without_input_go_first_and_keep_their_values(method: Any, groups: str) -> None:
    weight, gram = layer()
    silent = torch.zeros(40, dtype=torch.bool)
    silent[[1, 2, 6, 39]] = True
    weight[:, silent] *= 100
    gram[silent] = gram[:, silent] = 0
    chosen = method(weight, choice(groups, 0.5, weight.shape), gram)
    assert not chosen.keep[:, silent].any()
    given_mask = any_mask(weight.shape)
    got = method(weight, given_mask, gram)
    torch.testing.assert_close(got.weight[:, silent], (weight * given_mask)[:, silent])


@ALL
def test_any_dtype_is_computed_in_float32(method: Any) -> None:
    weight, gram = layer()
    mask = any_mask(weight.shape)
    half = method(weight.bfloat16(), mask, gram.double())
    torch.testing.assert_close(half.weight, method(weight.bfloat16().float(), mask, gram).weight)


@ALL
def test_what_is_given_is_left_alone(method: Any, same_bits: Any) -> None:
    weight, gram = layer()
    mask = any_mask(weight.shape)
    before = [t.clone() for t in (weight, gram, mask.float())]
    method(weight, mask, gram)
    method(weight, choice("layer", 0.5, weight.shape), gram)
    for now, then in zip((weight, gram, mask.float()), before, strict=True):
        same_bits(now, then)


@pytest.mark.parametrize("method", METHODS[1:], ids=repr)
@pytest.mark.parametrize("value", [math.nan, math.inf, -1.0])
def test_what_is_no_gram_is_refused(method: Any, value: float) -> None:
    weight, gram = layer()
    gram[3, 3] = value
    with pytest.raises(StatisticsError, match=r"Gram.*expected XᵀX.*calibrat"):
        method(weight, any_mask(weight.shape), gram)


@ALL
def test_a_weight_that_is_nan_is_refused_where_it_would_choose(method: Any) -> None:
    weight, gram = layer()
    weight[0, 0] = math.nan
    with pytest.raises(TargetError, match="NaN"):
        method(weight, choice("layer", 0.5, weight.shape), gram)


def test_the_registry_has_every_method_under_its_name() -> None:
    for name, kind in RECONSTRUCTIONS.items():
        assert kind().name == name
        assert kind().needs <= {Gram}


@pytest.mark.parametrize(
    "make",
    [
        lambda: OBS(block_size=0), lambda: OBS(damping=0.0), lambda: OBS(damping=math.nan),
        lambda: ADMM(penalty=0), lambda: ADMM(damping=-1e-3), lambda: ADMM(num_ramp_steps=31),
        lambda: ADMM(num_ramp_steps=0), lambda: ADMM(num_support_steps=-1),
    ],
)  # fmt: skip
def test_constants_without_meaning_are_refused(make: Any) -> None:
    with pytest.raises(RecipeError, match="expected"):
        make()


@pytest.mark.parametrize("share", [0.0, 0.3, 0.7, 1.0])
def test_a_share_of_a_choice_removes_that_share(share: float) -> None:
    scores = torch.rand(6, 40, generator=torch.Generator().manual_seed(0))
    keep = Choice(40, 10)(scores, share)
    torch.testing.assert_close(keep, keep_best(scores, 40 - round(share * 30)))


def test_row_errors_are_those_of_the_outputs() -> None:
    inputs = torch.randn(50, 7, generator=torch.Generator().manual_seed(0))
    difference = torch.randn(3, 7, generator=torch.Generator().manual_seed(1))
    expected = (inputs @ difference.T).square().sum(0)
    torch.testing.assert_close(row_errors(difference, inputs.T @ inputs), expected)


def test_rows_that_would_lose_are_left() -> None:
    """Strong damping towards H = I makes the sweep's update a bad one on some rows."""
    weight, gram = layer(200, 16, num_tokens=3)
    got = OBS(damping=0.5)(weight, any_mask(weight.shape, share=0.7), gram)
    assert (got.weight == weight * got.keep).all(1).any()
