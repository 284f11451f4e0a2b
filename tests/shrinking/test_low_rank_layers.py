"""Two Linears in the place of one: called as it was, with values or without."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import tiny_denoisers
from ditprune.checkpoints.shrunk.low_rank import Factors, LowRank, set_low_rank_, to_low_rank_
from ditprune.errors import ModelError

LAYER = "transformer_blocks.1.norm1.linear"


def flux(dtype: torch.dtype = torch.float32) -> nn.Module:
    return tiny_denoisers.FAMILIES["FluxTransformer2DModel"].make().to(dtype)


def factors(rank: int = 4, num_out: int = 192, num_in: int = 32) -> Factors:
    return Factors(torch.randn(rank, num_in), torch.randn(num_out, rank), torch.randn(num_out))


def test_it_is_called_as_a_linear_is() -> None:
    denoiser, given, inputs = flux(), factors(), torch.randn(2, 3, 32)
    set_low_rank_(denoiser, {LAYER: given})
    layer: Any = denoiser.get_submodule(LAYER)
    plain = nn.functional.linear(inputs, layer.weight, layer.bias)
    torch.testing.assert_close(layer(inputs), plain)
    torch.testing.assert_close(layer(input=inputs), plain)
    assert (layer.in_features, layer.out_features, layer.rank) == (32, 192, 4)
    assert layer.weight.dtype == torch.float32
    assert not layer.training
    assert "rank=4" in repr(layer)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_tree_without_values_takes_those_of_another(dtype: torch.dtype) -> None:
    full, empty = flux(dtype), flux(dtype).to("meta")
    parts = factors()
    set_low_rank_(
        full, {LAYER: Factors(parts.down.to(dtype), parts.up.to(dtype), parts.bias.to(dtype))}
    )
    to_low_rank_(empty, {LAYER: 4})
    layer = empty.get_submodule(LAYER)
    assert isinstance(layer, LowRank)
    assert {p.dtype for p in layer.parameters()} == {dtype}
    empty.load_state_dict(full.state_dict(), assign=True)
    assert {f"{LAYER}.down.weight", f"{LAYER}.up.weight", f"{LAYER}.up.bias"} <= {
        name for name, _ in empty.named_parameters()
    }
    inputs = torch.randn(2, 32, dtype=dtype)
    assert torch.equal(layer(inputs), full.get_submodule(LAYER)(inputs))


def test_two_become_two_of_a_lower_rank() -> None:
    denoiser = flux()
    set_low_rank_(denoiser, {LAYER: factors(8)})
    set_low_rank_(denoiser, {LAYER: factors(2)})
    layer: Any = denoiser.get_submodule(LAYER)
    assert (layer.rank, layer.num_weights) == (2, 2 * (192 + 32))


@pytest.mark.parametrize(
    ("name", "rank", "says"),
    [
        ("transformer_blocks.9.norm1.linear", 4, "has no layer 'transformer_blocks.9"),
        ("transformer_blocks.1.norm1", 4, "is a AdaLayerNormZero; expected a plain nn.Linear"),
        (LAYER, 0, "its rank is 0; expected a whole number, 1 to 32"),
        (LAYER, 33, "its rank is 33"),
        (LAYER, True, "its rank is True"),
        (LAYER, 4.0, "its rank is 4.0"),
    ],
)
def test_what_a_file_says_is_checked(name: str, rank: Any, says: str) -> None:
    with pytest.raises(ModelError, match=says):
        to_low_rank_(flux().to("meta"), {name: rank})


def test_factors_of_another_size_are_refused() -> None:
    with pytest.raises(ModelError, match=r"is \[192, 32\]; two Linears of \[192, 16\] do not fit"):
        set_low_rank_(flux(), {LAYER: factors(num_in=16)})
