"""Hooks see what enters a layer, and how many tokens, however its call names the input."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from ditprune.calls import Call
from ditprune.denoiser.capture import counting_tokens
from ditprune.evaluation.accounting import count_macs
from ditprune.pruning.forecast import row_cost
from ditprune.runtime.swap import sparsify_
from ditprune.targets.discover import discover

NUM_TOKENS = 2 * 3  # rows × positions


class ByKeyword(nn.Module):
    """A block whose layers are called with `input=`; its first one twice."""

    def __init__(self) -> None:
        super().__init__()
        block = nn.Module()
        block.to_q, block.to_k, block.to_v = (nn.Linear(4, 4) for _ in range(3))
        block.proj = nn.Conv1d(4, 8, 1)
        self.blocks = nn.ModuleList([block])

    def forward(self, x: Tensor) -> Tensor:
        block = self.blocks[0]
        mixed = block.to_q(input=block.to_q(input=x)) + block.to_k(input=x) + block.to_v(x)
        return block.proj(input=mixed.mT)


@pytest.fixture
def denoiser() -> nn.Module:
    return ByKeyword()


@pytest.fixture
def call() -> Call:
    return Call((torch.zeros(2, 3, 4),))


def test_every_call_of_a_layer_is_counted_and_no_hook_stays(denoiser, call) -> None:
    layers = {
        number: denoiser.get_submodule(name) for number, name in enumerate(discover(denoiser))
    }
    with counting_tokens(layers) as counts:
        denoiser(*call.args)
    assert counts == {0: [NUM_TOKENS] * 2, 1: [NUM_TOKENS], 2: [NUM_TOKENS], 3: [NUM_TOKENS]}
    denoiser(*call.args)
    assert len(counts[0]) == 2
    assert not any(layer._forward_pre_hooks for layer in denoiser.modules())


def test_macs_of_layers_called_by_keyword(denoiser, call) -> None:
    macs = count_macs(denoiser, call, discover(denoiser))
    product = NUM_TOKENS * 4 * 4
    assert list(macs.targets.values()) == [2 * product, product, product, 2 * product]
    assert macs.total == sum(macs.targets.values())


def test_the_cost_of_layers_called_by_keyword(denoiser, call) -> None:
    one = row_cost(denoiser.to("meta"), discover(denoiser), call)
    assert list(one.num_tokens.values()) == [6, 3, 3, 3]  # of one row


def test_layers_called_by_keyword_may_run_sparse(denoiser, call) -> None:
    assert all(choice.reason != "never called" for choice in sparsify_(denoiser, call).values())
