"""What a block costs if it goes: the forecast of one backward pass, and what is measured."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from ditprune.calls import Call
from ditprune.denoiser.blockwise.chain import Chain
from ditprune.denoiser.blockwise.find import find_chain
from ditprune.denoiser.blockwise.residence import InMemory
from ditprune.denoiser.blockwise.sweep import backwards, trace
from ditprune.denoiser.replay import predicted, relative_error, run_call
from ditprune.pruning.update.output_grams import signed_sum
from ditprune.shrinking.block_costs import (
    added_cost,
    block_costs,
    costing,
    measured_block_costs,
)
from ditprune.shrinking.drop import without_blocks
from ditprune.shrinking.moments import output_square
from foreign_builds import WIDTH, Denoiser
from foreign_builds import calls as foreign_calls
from tiny_denoisers import FAMILIES, Draw


class Straight(Denoiser):
    """What each block adds reaches the output as it is, so that a forecast is exact."""

    depth = 4

    def trunk(self, h: Tensor) -> Tensor:
        for block in self.blocks:
            h = block(h)
        return h

    class block(nn.Module):  # noqa: N801
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

        def forward(self, h: Tensor) -> Tensor:
            return h + self.b.bias


def test_a_forecast_is_what_is_measured_where_nothing_bends() -> None:
    torch.manual_seed(0)
    denoiser = Straight()
    given = [Call.of(call) for call in foreign_calls(rows=64, number=8)]
    blocks = [f"blocks.{i}" for i in range(4)]
    measured = measured_block_costs(denoiser, given, blocks)
    forecast = block_costs(denoiser, given, blocks)
    assert list(forecast) == blocks
    for path in blocks:
        assert forecast[path] == pytest.approx(measured[path], rel=0.25)


class Bent(Denoiser):
    depth = 3


def test_a_walk_back_through_the_blocks_gives_the_same_forecast() -> None:
    torch.manual_seed(0)
    denoiser = Bent().eval()
    given = [Call.of(call) for call in foreign_calls()]
    blocks = [f"blocks.{i}" for i in range(3)]
    residence = InMemory(denoiser)
    chain = find_chain(denoiser, blocks, given, residence)
    assert isinstance(chain, Chain)
    sums = {}
    seen = trace(chain, given, residence)
    for step in backwards(chain, given, residence, seen, signed_sum()):
        with costing(step) as costs:
            step.run()
        assert len(costs) == len(given)
        sums[step.path] = sum(costs) / output_square(denoiser, given)
    assert sums == pytest.approx(block_costs(denoiser, given, blocks))


def test_costs_are_of_rows() -> None:
    added = [torch.tensor([[1.0, 2.0], [3.0, 4.0]])]
    assert added_cost(added, [torch.ones(2, 2)], 2) == 3.0**2 + 7.0**2
    assert added_cost(added, [None], 2) == 0.0
    assert added_cost(added * 2, [torch.ones(2, 2), -torch.ones(2, 2)], 2) == 0.0


def test_measuring_leaves_a_denoiser_as_it_was() -> None:
    family = FAMILIES["DiTTransformer2DModel"]
    denoiser = replace(family, config={**family.config, "num_layers": 3}).make()
    call = Call.of(family.call(Draw(0)))
    before = predicted(run_call(denoiser, call), call)
    costs = measured_block_costs(denoiser, [call], ["transformer_blocks.1"])
    costs |= block_costs(denoiser, [call], ["transformer_blocks.0"])
    with without_blocks(denoiser, {"transformer_blocks": (0, 2)}):
        without = predicted(run_call(denoiser, call), call)
    assert costs["transformer_blocks.1"] == relative_error([(without, before)])
    assert costs["transformer_blocks.0"] > 0
    after = predicted(run_call(denoiser, call), call)
    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(before, after, strict=True))
    assert not any(parameter.grad is not None for parameter in denoiser.parameters())
