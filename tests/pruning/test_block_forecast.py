"""What updating block by block takes, from shapes and counted operations."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from ditprune.calls import Call
from ditprune.cli.forecasts import memory_lines
from ditprune.errors import RecipeError
from ditprune.method.distill import Distill
from ditprune.method.reconstruction.admm import ADMM
from ditprune.method.reconstruction.layer import Choice
from ditprune.method.words import build
from ditprune.pruning.forecast_blocks import BlockForecast, Setting, forecast_blocks
from ditprune.pruning.forecast_layers import curve_operations, solve_operations
from ditprune.pruning.rates import (
    Operations,
    Rates,
    as_gpu_rate,
    stated_rates,
)
from ditprune.pruning.row_cost import RowCost, row_cost
from ditprune.pruning.update.blockwise.way import takes_blocks
from ditprune.pruning.update.budgets import LEVELS
from ditprune.targets.discover import discover
from foreign_builds import TOKENS, WIDTH, Denoiser, noise

DEPTH, ROWS = 3, 4
LINEAR = 2 * TOKENS * (WIDTH * 3 * WIDTH + WIDTH * WIDTH + 2 * WIDTH * 2 * WIDTH)
ATTENTION = 2 * 2 * TOKENS * TOKENS * WIDTH
BLOCK, HEAD = LINEAR + ATTENTION, 2 * TOKENS * WIDTH * WIDTH
GRAMS = DEPTH * 2 * TOKENS * (3 * WIDTH**2 + (2 * WIDTH) ** 2)  # qkv, proj, two of the MLP
FACTORS = DEPTH * (3 * WIDTH**3 + (2 * WIDTH) ** 3)
# [C_out, C_in] × [C_in, C_in] for each target
PRODUCTS = DEPTH * 2 * ((3 + 1 + 2) * WIDTH * WIDTH**2 + WIDTH * (2 * WIDTH) ** 2)
ADMM_PRODUCTS, CURVE_PRODUCTS = 30 + 10 + 4, 1 + 8 * (6 + 3 + 2)


class Deep(Denoiser):
    depth = DEPTH


@pytest.fixture(scope="module")
def counted() -> tuple[dict[str, Any], RowCost]:
    with torch.device("meta"):
        denoiser = Deep()
    call = Call((), {"x": noise(2, TOKENS, WIDTH), "t": noise(2)})
    targets = discover(denoiser)
    return targets, row_cost(denoiser, targets, call)


def forecast(counted: Any, setting: Setting | None = None, **words: Any) -> Any:
    return forecast_blocks(counted[0], build(**words), counted[1], setting or small())


def small(**more: Any) -> Setting:
    return Setting(ROWS, 2, num_parameters=100_000, **more)


def test_a_block_costs_what_its_linears_and_its_attention_cost(counted) -> None:
    row = counted[1]
    assert [block.num_operations for block in row.blocks.values()] == [BLOCK] * DEPTH
    assert [block.num_given for block in row.blocks.values()] == [TOKENS * WIDTH] * DEPTH
    assert row.num_outside == HEAD
    assert row.num_operations == DEPTH * BLOCK + HEAD


def test_the_work_of_every_stage_is_that_by_hand(counted) -> None:
    """A pass enters each block through what lies outside; no gradient of a weight is taken."""
    once = DEPTH * (HEAD + BLOCK)
    back = once + DEPTH * (LINEAR + 2 * ATTENTION)
    layers = Operations(updates=ADMM_PRODUCTS * PRODUCTS, factors=FACTORS)
    budgets = Operations(updates=CURVE_PRODUCTS * PRODUCTS, factors=FACTORS)
    gradients = Operations(ROWS * (once + back), ROWS * GRAMS)
    kept = forecast(counted, preset="fast")
    assert kept.work == {"gradients": gradients, "budgets": budgets, "layers": layers}
    few = small(max_gram_bytes=8 * (3 * WIDTH**2 + (2 * WIDTH) ** 2))  # of one block
    again = forecast(counted, few, preset="fast").work
    assert again == kept.work | {"Grams": Operations(ROWS * once, ROWS * GRAMS)}
    parts = small(max_gram_bytes=8 * (2 * WIDTH) ** 2)  # of one layer, or of three
    assert forecast(counted, parts, preset="fast").work["Grams"].forwards == 2 * ROWS * once
    assert forecast(counted, preset="fast", pattern="2:4").work == {
        "gradients": gradients, "layers": layers,
    }  # fmt: skip
    assert forecast(counted, reconstruction="obs").work.keys() == {"Grams", "layers"}


def test_products_are_those_that_admm_takes(counted, monkeypatch: pytest.MonkeyPatch) -> None:
    num_out, num_in = 6, 8
    weight, tokens = torch.randn(num_out, num_in), torch.randn(20, num_in)
    taken = []
    whole = torch.Tensor.__matmul__

    def counting(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        taken.append(1)
        return whole(left, right)

    gram = tokens.T @ tokens
    monkeypatch.setattr(torch.Tensor, "__matmul__", counting)
    solver = ADMM().prepare(weight, gram)
    target = len(taken)
    list(solver.errors([Choice(48, keep) for keep in (40, 30)]))
    curve = len(taken) - target
    solver(Choice(48, 24))
    assert target == 1
    assert curve == 2 * ADMM().num_products_of_error
    assert len(taken) - curve == ADMM().num_products
    recipe, first = build(preset="fast"), next(iter(counted[0].values()))
    product = solve_operations(first, recipe) / ADMM().num_products
    assert curve_operations(first, recipe) == product * (1 + len(LEVELS) * curve / 2)


def test_memory_and_disk_are_counted(counted) -> None:
    kept = forecast(counted, preset="fast")
    assert kept.states_bytes == 2 * ROWS * TOKENS * WIDTH * 4
    assert kept.trace_bytes == DEPTH * ROWS * (TOKENS * WIDTH * 4 + 4 * TOKENS * 4)
    assert kept.least_trace_bytes == kept.trace_bytes  # of three blocks
    half = forecast(counted, small(itemsize=2), preset="fast")
    assert half.states_bytes == kept.states_bytes / 2
    assert half.device_bytes["runs"] < kept.device_bytes["runs"]
    assert kept.device_bytes.keys() == {"runs", "is updated"}
    assert forecast(counted, reconstruction="admm").trace_bytes == 0


def test_a_gpu_that_is_too_small_is_told() -> None:
    known = BlockForecast({}, 1, {"runs": 3 * 10**9, "is refined": 25 * 10**9}, 10**9, 0, 0)
    assert [*memory_lines(known)] == [
        "  memory of the device: about 25 GB, while a block is refined; on a GPU 24 GB are too few "
        "and 80 GB are enough",
        "  main memory: 1 GB of hidden states of two blocks",
    ]


def test_a_refinement_trains_blocks(counted) -> None:
    words = {"preset": "fast", "refinement": Distill(num_steps=10, batch_size=2)}
    trained = forecast(counted, **words)
    steps, once = 10 * 2 * 3 * DEPTH * BLOCK, DEPTH * (HEAD + BLOCK)
    both = 2 * ROWS * once  # dense, and pruned
    assert trained.work["refinement"] == Operations(steps + both)
    words["refinement"] = Distill(num_steps=10, batch_size=2, inputs="dense")
    assert forecast(counted, **words).work["refinement"] == Operations(steps + both / 2)
    assert trained.device_bytes.keys() == {"runs", "is updated", "is refined"}
    assert "Grams" in trained.work


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ({"preset": "fast"}, True),
        ({"preset": "fast", "pattern": "2:4"}, True),
        ({"reconstruction": "obs"}, True),
        ({"reconstruction": "obs", "packages": 2}, False),
        ({"preset": "fast", "max_error": 0.1}, False),
        ({"preset": "fast", "objective": "layer"}, False),
        ({"preset": "paper"}, False),
        ({"reconstruction": "obs", "allocation": "sensitivity"}, False),
    ],
    ids=str,
)
def test_what_needs_the_whole_denoiser_is_not_taken_block_by_block(words, expected) -> None:
    assert takes_blocks(build(**words)) is expected


def test_seconds_are_operations_by_their_rates() -> None:
    assert Operations(8, 6, 4, 2).seconds(Rates(8, 2, 1, 4)) == 1 + 3 + 4 + 0.5
    stated = stated_rates(40)
    assert (stated.forwards, stated.products) == (40e12, 40e12)
    assert stated.factors < stated.updates < stated.products


@pytest.mark.parametrize("rate", [0.0, -1.0, math.nan, math.inf])
def test_what_is_no_rate_is_refused(rate: float) -> None:
    with pytest.raises(RecipeError, match=r"gpu.rate.*: expected TFLOP/s above 0, such as 40"):
        as_gpu_rate(rate)
