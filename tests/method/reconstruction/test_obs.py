"""The sweep against the textbook: remove one weight at a time, and solve for the rest."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ditprune.errors import StatisticsError
from ditprune.method.reconstruction.layer import Choice, row_errors
from ditprune.method.reconstruction.obs import OBS, inverse_factor
from layer_problems import any_mask, choice, error_of, layer

DAMPING = 0.01


def in_units(weight: Tensor, gram: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """W‖X‖, the damped unit Gram and ‖X‖ in float64."""
    norm = gram.diagonal().double().sqrt()
    hessian = gram.double() / norm / norm[:, None] + DAMPING * torch.eye(len(norm))
    return weight.double() * norm, hessian, norm


def naive_sweep(weight: Tensor, gram: Tensor, keep: Tensor) -> Tensor:
    """Column by column the closed form of OBS, H⁻¹ inverted afresh each time."""
    update, hessian, norm = in_units(weight, gram)
    for j in range(weight.shape[1]):
        inverse = torch.linalg.inv(hessian[j:, j:])
        error = update[:, j].masked_fill(keep[:, j], 0) / inverse[0, 0]
        update[:, j:] -= error[:, None] * inverse[0]
    return (update / norm * keep).float()


@pytest.mark.parametrize("seed", range(4))
def test_equals_the_closed_form_on_a_given_mask(seed: int) -> None:
    weight, gram = layer(seed=seed)
    keep = any_mask(weight.shape, seed)
    expected = naive_sweep(weight, gram, keep)
    got = OBS(damping=DAMPING)(weight, keep, gram)
    gains = row_errors(weight - expected, gram) <= row_errors(weight * ~keep, gram)
    assert (~gains).sum() < len(gains) / 2
    assert torch.equal(got.weight[~gains], (weight * keep)[~gains])
    torch.testing.assert_close(got.weight[gains], expected[gains], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("block_size", "groups"),
    [(b, "given") for b in (1, 8, 16, 24, 128)] + [(8, "2:4"), (24, "2:4")],
)
def test_blocked_equals_unblocked(block_size: int, groups: str) -> None:
    weight, gram = layer()
    mask = any_mask(weight.shape) if groups == "given" else choice("2:4", 0.5, weight.shape)
    whole = OBS(block_size=40)(weight, mask, gram)
    blocked = OBS(block_size=block_size)(weight, mask, gram)
    torch.testing.assert_close(blocked.keep, whole.keep)
    torch.testing.assert_close(blocked.weight, whole.weight, rtol=1e-3, atol=1e-4)


def test_n_of_m_is_chosen_as_each_group_is_reached() -> None:
    weight, gram = layer()
    update, hessian, _ = in_units(weight, gram)
    keep = torch.ones_like(weight, dtype=torch.bool)
    for j in range(40):
        inverse = torch.linalg.inv(hessian[j:, j:])
        if j % 4 == 0:
            # H⁻¹ over the columns from k on, for each k of the group.
            diagonal = [torch.linalg.inv(hessian[k:, k:])[0, 0] for k in range(j, j + 4)]
            scores = update[:, j : j + 4].square() / torch.stack(diagonal)
            keep[:, j : j + 4] = scores.argsort(dim=1).argsort(dim=1) >= 2
        error = update[:, j].masked_fill(keep[:, j], 0) / inverse[0, 0]
        update[:, j:] -= error[:, None] * inverse[0]
    torch.testing.assert_close(OBS(damping=DAMPING)(weight, Choice(4, 2), gram).keep, keep)


@pytest.mark.parametrize("groups", ["layer", "channel"])
def test_choosing_along_the_sweep_beats_choosing_at_once(groups: str) -> None:
    weight, gram = layer(64, 96, num_tokens=500)
    mask = choice(groups, 0.6, weight.shape)
    at_once, along = (OBS(block_size=b)(weight, mask, gram) for b in (96, 8))
    assert error_of(weight, along.weight, gram) < error_of(weight, at_once.weight, gram)


def test_more_damping_is_used_where_it_takes_more_and_recorded() -> None:
    weight, gram = layer()
    assert OBS()(weight, any_mask(weight.shape), gram).damping == 0.01
    # Rounding may leave a Gram slightly negative; this one is so by 5 % of its diagonal.
    unit = torch.full((3, 3), -0.525).fill_diagonal_(1)
    _, damping = inverse_factor(unit, 0.01)
    assert damping == pytest.approx(0.1)


def test_what_no_damping_helps_is_refused() -> None:
    with pytest.raises(StatisticsError, match="not positive"):
        inverse_factor(torch.full((3, 3), -500.0).fill_diagonal_(1), 0.01)
