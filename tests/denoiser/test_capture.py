"""Hooks see what enters a layer, and how many tokens, however its call names the input."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import Tensor, nn

import ditprune
from ditprune.calls import Call
from ditprune.denoiser.capture import counting_tokens
from ditprune.errors import ModelError
from ditprune.evaluation.accounting import count_macs
from ditprune.pruning.row_cost import row_cost
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


class Guided(nn.Module):
    """Calls its own forward, by name or once more inside."""

    def forward(self, x: torch.Tensor, again: bool = False) -> torch.Tensor:
        return self.forward(x) if again else 2 * x

    def guided(self, x: torch.Tensor) -> torch.Tensor:
        return self.forward(x) - self.forward(x, again=True)

    def aside(self, x: torch.Tensor) -> torch.Tensor:
        return x


def replaced_forward() -> nn.Module:
    """As accelerate's hooks put a function in the place of the method."""
    module = Guided()
    module.forward = functools.partial(Guided.forward, module)
    return module


@pytest.mark.parametrize(
    "make",
    [
        Guided, replaced_forward, lambda: torch.compile(Guided(), backend="eager"),
        lambda: nn.DataParallel(Guided()),
    ],
    ids=["plain", "replaced", "compiled", "parallel"],
)  # fmt: skip
def test_every_call_of_a_forward_is_recorded_once(make) -> None:
    module, x = make(), torch.ones(2)
    inner = module.module if isinstance(module, nn.DataParallel) else module
    is_heard = inner is module
    with ditprune.recorded(module) as calls:
        module(x)
        module(x, again=True)
        inner.guided(x)
    assert len(calls) == (4 if is_heard else 2)
    assert calls[1].kwargs == {"again": True}
    inner.guided(x)
    module(x)
    assert len(calls) == (4 if is_heard else 2)
    with pytest.raises(ModelError, match="was not called in the block"), ditprune.recorded(module):
        inner.aside(x)
    with pytest.raises(ZeroDivisionError), ditprune.recorded(module):
        _ = 1 / 0
