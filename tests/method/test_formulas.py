"""Every saliency against its formula in float64, and the identities among them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from ditprune.method.saliency.power import STW, Magnitude, Power, Wanda
from ditprune.method.saliency.ria import RIA


def draw(num_out: int = 13, num_in: int = 21, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(num_out, num_in, generator=generator)
    norm = torch.randn(num_in, generator=generator).mul(2).exp()
    return weight, norm


def ria_formula(w: Tensor, x: Tensor, a: float) -> Tensor:
    w = w.abs()
    return (w / w.sum(0) + w / w.sum(1, keepdim=True)) * x**a


FORMULAS: list[tuple[Any, Callable[[Tensor, Tensor], Tensor]]] = [
    (Magnitude(), lambda w, x: w.abs()),
    (Wanda(), lambda w, x: w.abs() * x),
    (STW(), lambda w, x: w.abs() ** 2 * x),
    (Power(3, 2), lambda w, x: w.abs() ** 3 * x**2),
    (Power(0.5, 1), lambda w, x: w.abs() ** 0.5 * x),
    (Power(1.5, 0.7), lambda w, x: w.abs() ** 1.5 * x**0.7),
    (Power(0, 1), lambda w, x: torch.ones_like(w) * x),
    (RIA(), lambda w, x: ria_formula(w, x, 0.5)),
    (RIA(1), lambda w, x: ria_formula(w, x, 1)),
    (RIA(0.7), lambda w, x: ria_formula(w, x, 0.7)),
    (RIA(0), lambda w, x: ria_formula(w, x, 0)),
]
SALIENCIES = [saliency for saliency, _ in FORMULAS]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("saliency", "formula"), FORMULAS, ids=[repr(s) for s, _ in FORMULAS])
def test_scores_are_the_formula_in_float32(saliency: Any, formula: Any, dtype: torch.dtype) -> None:
    weight, norm = draw()
    weight = weight.to(dtype)
    scores = saliency(weight, norm)
    assert scores.dtype == torch.float32
    expected = formula(weight.double(), norm.double())
    torch.testing.assert_close(scores.double(), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_stw_with_other_powers_is_magnitude_and_wanda(dtype: torch.dtype, same_bits) -> None:
    weight, norm = draw()
    weight = weight.to(dtype)
    same_bits(Power(1, 0)(weight, None), Magnitude()(weight, None))
    same_bits(Power(1, 1)(weight, norm), Wanda()(weight, norm))
    same_bits(Power(2, 1)(weight, norm), STW()(weight, norm))


@pytest.mark.parametrize("saliency", SALIENCIES, ids=repr)
def test_inputs_are_left_alone(saliency: Any, same_bits) -> None:
    weight, norm = draw()
    before = weight.clone(), norm.clone()
    scores = saliency(weight, norm)
    scores.fill_(-1)
    same_bits(weight, before[0])
    same_bits(norm, before[1])


@pytest.mark.parametrize("saliency", SALIENCIES, ids=repr)
def test_a_trainable_weight_gives_scores_without_a_graph(saliency: Any) -> None:
    weight, norm = draw()
    assert not saliency(torch.nn.Parameter(weight), norm).requires_grad


@pytest.mark.parametrize("saliency", SALIENCIES, ids=repr)
def test_zero_rows_columns_and_norms_score_without_nan(saliency: Any) -> None:
    weight, norm = draw()
    weight[2] = 0
    weight[:, 5] = 0
    norm[7] = 0
    scores = saliency(weight, norm)
    assert scores.isfinite().all()
    if getattr(saliency, "weight_power", 1):
        assert (scores[2] == 0).all()
        assert (scores[:, 5] == 0).all()
    if saliency.needs and getattr(saliency, "activation_power", 1):
        assert (scores[:, 7] == 0).all()
    assert (saliency(torch.zeros(3, 4), torch.zeros(4)).isfinite()).all()


@pytest.mark.parametrize("saliency", [*SALIENCIES, Power(0.7, 1.5), Power(1.3, 0.3)], ids=repr)
def test_same_bits_on_any_number_of_threads(saliency: Any, with_threads, same_bits) -> None:
    # Sizes that no vector width and no even split divides.
    weight, norm = draw(513, 1021)
    one = with_threads(1, lambda: saliency(weight, norm))
    two = with_threads(2, lambda: saliency(weight, norm))
    same_bits(one, two)
