"""Removing columns: what it costs, and what the rest becomes, against the plain definition."""

from __future__ import annotations

import pytest
import torch

from ditprune.method.columns import Moments, Reader, Supply, least_squares, removals


def problem(num_out: int = 6, num_in: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    inputs = torch.randn(200, num_in, generator=draw) @ torch.randn(num_in, num_in, generator=draw)
    return torch.randn(num_out, num_in, generator=draw), inputs.double() + 1.0


def moments(inputs: torch.Tensor) -> Moments:
    return Moments(inputs.T @ inputs, inputs.sum(0), float(len(inputs)))


@pytest.mark.parametrize("width", [1, 3])
def test_the_costs_of_an_order_are_those_of_least_squares(width: int) -> None:
    weight, inputs = problem()
    rows = torch.tensor([0.5, 1.0, 2.0, 1.0, 0.5, 1.0])
    columns = torch.arange(12).reshape(-1, width)
    matrix = moments(inputs).matrix(has_bias=True)
    supply = {"g": Supply(len(columns), 1, 1, 1.0)}
    order = removals([Reader(weight, matrix, rows, {"g": columns})], supply)
    assert len(order) == len(columns) - 1
    gone: list[int] = []
    total = 0.0
    centred = inputs - inputs.mean(0)
    for step in order:
        gone += step.units
        total += step.cost
        stay = torch.tensor([c for u, cs in enumerate(columns.tolist()) for c in cs
                             if u not in gone])  # fmt: skip
        update = least_squares(weight, matrix, stay)
        error = centred @ weight.double().T - centred[:, stay] @ update.double().T
        assert total == pytest.approx(float((error.square() * rows).sum()), rel=0.02)


def test_the_cheapest_goes_first_and_a_batch_together() -> None:
    weight, inputs = problem()
    weight[:, [3, 7]] = 0
    columns = torch.arange(12).reshape(-1, 1)
    reader = Reader(weight, moments(inputs).matrix(True), torch.ones(6), {"g": columns})
    order = removals([reader], {"g": Supply(12, 4, 2, 1.0)})
    assert [len(step.units) for step in order] == [4, 4]
    assert {3, 7} < set(order[0].units)
    assert order[0].price == 4


def test_two_groups_of_one_matrix_go_by_their_price() -> None:
    weight, inputs = problem()
    groups = {"a": torch.arange(6).reshape(-1, 1), "b": torch.arange(6, 12).reshape(-1, 2)}
    reader = Reader(weight, moments(inputs).matrix(True), torch.ones(6), groups)

    def first(price: float) -> str:
        supplies = {"a": Supply(6, 1, 1, 1.0), "b": Supply(3, 1, 1, price)}
        return removals([reader], supplies)[0].group

    assert (first(1e-3), first(1e3)) == ("a", "b")


def test_inputs_that_depend_on_each_other_are_damped_and_not_refused() -> None:
    weight, inputs = problem()
    inputs = inputs[:3]
    update = least_squares(weight, moments(inputs).matrix(False), torch.arange(4))
    error = inputs @ weight.double().T - inputs[:, :4] @ update.double().T
    assert float(error.square().mean()) < 0.01 * float((inputs @ weight.double().T).square().mean())
