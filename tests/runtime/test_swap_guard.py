"""Layers that `sparsify_` must leave alone: under adapters, offloaded, cast, or packed."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
from torch import nn

import ditprune
from adapters import Lora, Packed, wrap_all
from ditprune.runtime import SparseLinear, desparsify_, sparsify_, swap

LEAF = "attn1.to_q"
NAME = f"transformer_blocks.1.{LEAF}"
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _always_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(swap, "MIN_GAIN", 0.0)


@pytest.fixture
def pruned(tiny_dit) -> nn.Module:
    denoiser = tiny_dit()
    ditprune.prune_(denoiser, saliency="magnitude", sparsity=0.5)
    return denoiser


def test_a_lora_is_not_lost_when_it_is_merged_after_layers_were_swapped(pruned, batches) -> None:
    call = batches(pruned, 1)[0]
    names = wrap_all(pruned, leaf=LEAF)
    with torch.no_grad():
        expected = pruned(**call).sample
    decisions = sparsify_(pruned, call)
    assert sum(decision.is_swapped for decision in decisions.values()) == 21 - len(names)
    for name in names:
        for part in ("base_layer", "lora_A.default", "lora_B.default"):
            assert "fuse_lora" in decisions[f"{name}.{part}"].reason
        pruned.set_submodule(name, pruned.get_submodule(name).merge_())
    with torch.no_grad():
        torch.testing.assert_close(pruned(**call).sample, expected, rtol=1e-4, atol=1e-4)
    again = sparsify_(pruned, call)  # merged layers are dense again
    assert again[f"{NAME}"].reason == "too few zeros to be smaller"


def test_a_layer_under_a_lora_runs_sparse_once_its_mask_is_there_again(pruned, batches) -> None:
    call = batches(pruned, 1)[0]
    keep = pruned.get_submodule(NAME).weight != 0
    wrap_all(pruned, leaf=LEAF)
    assert isinstance(pruned.get_submodule(NAME), Lora)
    ditprune.prune_(pruned, saliency="magnitude", sparsity=0.5)  # in place, the same zeros
    assert torch.equal(pruned.get_submodule(f"{NAME}.base_layer").weight != 0, keep)
    pruned.set_submodule(NAME, pruned.get_submodule(NAME).merge_())
    with torch.no_grad():
        pruned.get_submodule(NAME).weight.mul_(keep)
    assert sparsify_(pruned, call)[NAME].is_swapped
    assert isinstance(pruned.get_submodule(NAME), SparseLinear)


def cast(denoiser: nn.Module) -> None:
    denoiser.enable_layerwise_casting(
        storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32
    )


def offload(denoiser: nn.Module) -> None:
    from accelerate import cpu_offload

    cpu_offload(denoiser, execution_device=CPU)


def subclass(denoiser: nn.Module) -> None:
    layer = denoiser.get_submodule(NAME)
    layer.weight = nn.Parameter(Packed(layer.weight.detach()), requires_grad=False)


def on_meta(denoiser: nn.Module) -> None:
    denoiser.get_submodule(NAME).to("meta")


def hooked(denoiser: nn.Module) -> None:
    from accelerate.hooks import ModelHook, add_hook_to_module

    add_hook_to_module(denoiser.get_submodule(NAME), ModelHook())


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (cast, "cast at each call"),
        (offload, "is offloaded"),
        (subclass, "is a Packed, a tensor subclass"),
        (on_meta, "on the meta device"),
        (hooked, "its forward is replaced"),
    ],
)  # fmt: skip
def test_what_holds_no_plain_values_stays_with_its_reason(pruned, change, reason) -> None:
    change(pruned)
    layer = pruned.get_submodule(NAME)
    decision = sparsify_(pruned)[NAME]
    assert reason in decision.reason
    assert decision.shape == (32, 32)
    assert pruned.get_submodule(NAME) is layer


@pytest.mark.parametrize(
    "wrap", [partial(torch.compile, backend="eager"), nn.DataParallel], ids=["compiled", "parallel"]
)
def test_a_wrapped_denoiser_runs_sparse_and_comes_back(pruned, batches, wrap) -> None:
    call = batches(pruned, 1)[0]
    plain = copy.deepcopy(pruned)
    names = set(sparsify_(plain, call))
    wrapped = wrap(pruned)
    decisions = sparsify_(wrapped, call)
    assert set(decisions) == names
    assert decisions[NAME].is_swapped
    with torch.no_grad():
        torch.testing.assert_close(
            wrapped(**call).sample, plain(**call).sample, rtol=1e-4, atol=1e-4
        )
    assert NAME in desparsify_(wrapped)
    assert type(pruned.get_submodule(NAME)) is nn.Linear
