"""Swapping layers of a real denoiser there and back; the clock is not under test, the rules are."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import diffusers
import pytest
import torch
from torch import nn

import ditprune
from ditprune.runtime import SparseLinear, build, desparsify_, sparsify_, swap
from ditprune.runtime.backends import OwnKernel
from ditprune.runtime.stopwatch import best_seconds

TARGETS = 21


@pytest.fixture
def always_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any layer gains: at sizes of a test the clock would decide by chance."""
    monkeypatch.setattr(swap, "MIN_GAIN", 0.0)


@pytest.fixture
def pruned(tiny_dit) -> nn.Module:
    denoiser = tiny_dit()
    ditprune.prune_(denoiser, saliency="magnitude", granularity="channel", sparsity=0.5)
    return denoiser


def sample_of(denoiser: nn.Module, call: dict[str, Any]) -> torch.Tensor:
    with torch.no_grad():
        return denoiser(**call).sample


def swapped_names(denoiser: nn.Module) -> set[str]:
    return {name for name, m in denoiser.named_modules() if isinstance(m, SparseLinear)}


@pytest.mark.usefixtures("always_faster")
@pytest.mark.parametrize("with_call", [True, False])
def test_a_denoiser_runs_sparse_and_comes_back(with_call: bool, pruned, batches, same_bits) -> None:
    call = batches(pruned, 1)[0]
    dense, state = sample_of(pruned, call), copy.deepcopy(pruned.state_dict())
    decisions = sparsify_(pruned, call if with_call else None)
    swapped = swapped_names(pruned)
    assert len(swapped) == TARGETS
    assert {name for name, one in decisions.items() if one.is_swapped} == swapped
    torch.testing.assert_close(sample_of(pruned, call), dense, rtol=1e-4, atol=1e-5)
    assert list(pruned.state_dict()) == list(state)
    assert set(desparsify_(pruned)) == swapped
    assert not swapped_names(pruned)
    for name, tensor in pruned.state_dict().items():
        same_bits(tensor, state[name])
    torch.testing.assert_close(sample_of(pruned, call), dense, rtol=0, atol=0)
    assert desparsify_(pruned) == []


@pytest.mark.usefixtures("always_faster")
def test_the_tokens_of_each_layer_come_from_the_call(pruned, batches) -> None:
    decisions = sparsify_(pruned, batches(pruned, 1)[0])
    first = "transformer_blocks.0."
    assert set(decisions[f"{first}norm1.linear"].dense_s) == {2}
    assert set(decisions[f"{first}ff.net.2"].sparse_s) == {32}
    assert decisions["proj_out_1"].reason == "too few zeros to be smaller"
    assert decisions["proj_out_1"].dense_s == {}


@pytest.mark.usefixtures("always_faster")
def test_what_a_decision_says_of_size_and_sparsity(pruned) -> None:
    decisions = sparsify_(pruned)
    decision = decisions["transformer_blocks.0.ff.net.2"]
    assert (decision.shape, decision.sparsity) == ((32, 128), 0.5)
    layer = pruned.get_submodule("transformer_blocks.0.ff.net.2")
    assert decision.size_bytes == layer.size_bytes < 0.8 * 4 * 32 * 128
    assert all(seconds > 0 for seconds in (*decision.dense_s.values(), *decision.sparse_s.values()))
    dense = decisions["proj_out_1"]
    assert dense.size_bytes == 4 * dense.shape[0] * dense.shape[1]


def test_what_does_not_gain_stays_the_same_object(pruned, monkeypatch) -> None:
    monkeypatch.setattr(swap, "MIN_GAIN", 1e9)
    before = dict(pruned.named_modules())
    decisions = sparsify_(pruned)
    assert dict(pruned.named_modules()) == before
    reasons = [one.reason for one in decisions.values() if one.dense_s]
    assert len(reasons) == TARGETS
    assert all("× as fast with" in reason for reason in reasons)


def test_what_cannot_be_swapped_is_left_with_its_reason(monkeypatch) -> None:
    monkeypatch.setattr(swap, "MIN_GAIN", 0.0)
    model = nn.ModuleDict({name: nn.Linear(256, 256) for name in "abcdefg"})
    with torch.no_grad():
        for linear in model.values():
            linear.weight[:, ::2] = 0
    model["b"].weight = model["a"].weight
    model["c"].half()
    model["d"].register_forward_hook(lambda *_: None)
    model["e"] = type("Own", (nn.Linear,), {})(256, 256)
    model["h"] = model["g"]
    decisions = sparsify_(model)
    assert {name for name, one in decisions.items() if one.is_swapped} == {"f"}
    assert {name: decisions[name].reason for name in "abcdegh"} == {
        "a": "its weight is shared",
        "b": "its weight is shared",
        "c": "its weight is torch.float16 on cpu",
        "d": "it has hooks",
        "e": "Own is a subclass of nn.Linear, with what it adds",
        "g": "its weight is shared",
        "h": "its weight is shared",
    }


def test_layers_in_other_numbers_are_timed_by_themselves(monkeypatch) -> None:
    timed = []

    def time_both(linear: nn.Linear, *_: Any) -> Any:
        timed.append(linear.weight.dtype)
        return ({2: 2.0}, {2: 1.0})

    monkeypatch.setattr(swap, "_time_both", time_both)
    model = nn.ModuleDict({name: nn.Linear(64, 64) for name in "abcd"})
    with torch.no_grad():
        for linear in model.values():
            linear.weight[:, ::2] = 0
    model["c"].bfloat16(), model["d"].bfloat16()
    sparsify_(model)
    assert timed == [torch.float32, torch.bfloat16]


@pytest.mark.parametrize("with_call", [True, False])
def test_all_numbers_of_tokens_together_decide(with_call: bool, pruned, batches, monkeypatch):
    times = ({2: 1.0, 512: 100.0}, {2: 2.0, 512: 90.0})
    monkeypatch.setattr(swap, "_time_both", lambda *_: times)
    call = batches(pruned, 1)[0] if with_call else None
    assert sum(one.is_swapped for one in sparsify_(pruned, call).values()) == TARGETS
    desparsify_(pruned)
    times = ({2: 3.0, 512: 100.0}, {2: 1.0, 512: 105.0})
    reasons = [one.reason for one in sparsify_(pruned, call).values() if one.dense_s]
    more = "" if with_call else "; pass a call to time it with its own number"
    assert reasons == [f"0.97× as fast with 2 and 512 tokens{more}"] * TARGETS


def model_of(*widths: int) -> nn.ModuleList:
    model = nn.ModuleList(nn.Linear(64, width, bias=False) for width in widths)
    with torch.no_grad():
        for linear in model:
            linear.weight[:, ::2] = 0
    return model


@dataclass(frozen=True)
class Watched(OwnKernel):
    """The kernel's backend, with given times, which tells what it is asked."""

    seen: list[Any]
    look: Callable[[float], Any]

    def seconds(
        self, works: list[Any], device: str, cold: torch.Tensor, limit_s: float
    ) -> list[float]:
        self.seen.append(self.look(limit_s))
        return [2.0, 1.0]


@pytest.mark.no_compiler
def test_dense_weights_leave_one_by_one(monkeypatch) -> None:
    model = model_of(32, 64, 96, 128)
    weights = [weakref.ref(linear.weight) for linear in model]
    monkeypatch.setattr(swap, "NUM_TOKENS", (2,))
    monkeypatch.setattr(build, "load_kernel", lambda: None)
    seen: list[int] = []
    sparsify_(model, backend=Watched(seen, lambda _: sum(ref() is not None for ref in weights)))
    assert seen == [4, 3, 2, 1]
    assert not any(ref() for ref in weights)


@pytest.mark.no_compiler
def test_timings_share_a_limit(monkeypatch) -> None:
    monkeypatch.setattr(build, "load_kernel", lambda: None)
    now_s, seen = [0.0], []
    monkeypatch.setattr(swap, "time", SimpleNamespace(perf_counter=lambda: now_s[0]))

    def look(limit_s: float) -> float:
        now_s[0] += 0.2
        return limit_s

    sparsify_(model_of(32, 64), backend=Watched(seen, look), limit_s=0.3)
    assert seen == [pytest.approx(limit_s) for limit_s in (0.3, 0.1, 0, 0)]


@pytest.mark.no_compiler
def test_other_devices_are_waited_for(monkeypatch) -> None:
    waits: list[int] = []
    monkeypatch.setattr(torch.mps, "synchronize", lambda: waits.append(1))
    best_seconds([lambda: None], "mps", num_rounds=3)
    assert len(waits) == 6


@pytest.mark.usefixtures("always_faster")
def test_a_layer_that_the_call_does_not_reach_stays(original_dit, batches) -> None:
    denoiser = original_dit()
    ditprune.prune_(denoiser, saliency="magnitude", granularity="channel", sparsity=0.5)
    denoiser.blocks[0].unused = copy.deepcopy(denoiser.blocks[0].mlp.fc1)
    decisions = sparsify_(denoiser, batches(denoiser, 1)[0])
    assert decisions["blocks.0.unused"].reason == "never called"
    assert not any(module._forward_pre_hooks for module in denoiser.modules())


@pytest.mark.usefixtures("always_faster")
def test_a_pipeline_draws_the_same_and_saves_the_same(own_pipeline, tmp_path, same_bits) -> None:
    def draw(pipeline: Any) -> torch.Tensor:
        pipeline.set_progress_bar_config(disable=True)
        generator = torch.Generator().manual_seed(0)
        images = pipeline([1, 2], num_inference_steps=2, generator=generator, output_type="np")
        return torch.as_tensor(images.images)

    pipeline = diffusers.DiTPipeline.from_pretrained(own_pipeline)
    ditprune.prune_(pipeline.transformer, saliency="magnitude", granularity="layer")
    dense, state = draw(pipeline), copy.deepcopy(pipeline.transformer.state_dict())
    sparsify_(pipeline.transformer)
    assert len(swapped_names(pipeline.transformer)) == TARGETS
    torch.testing.assert_close(draw(pipeline), dense, rtol=1e-3, atol=1e-3)
    pipeline.to("cpu").save_pretrained(tmp_path / "saved")
    saved = diffusers.DiTPipeline.from_pretrained(tmp_path / "saved").transformer.state_dict()
    assert list(saved) == list(state)
    for name, tensor in state.items():
        same_bits(saved[name], tensor)


@pytest.mark.no_compiler
def test_without_a_kernel_it_warns_once_and_stays_dense(pruned, monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    build.load_kernel.cache_clear()
    with pytest.warns(UserWarning, match=r"no C\+\+ compiler .*every layer stays dense"):
        decisions = sparsify_(pruned)
    assert {one.reason for one in decisions.values()} == {"no kernel"}
    assert not swapped_names(pruned)
