"""Which weights may be written, and what is said of all others."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

import ditprune
from adapters import IPAdapterAttnProcessor, Lora, Packed, Rotated, wrap_all
from ditprune.errors import ModelError
from ditprune.targets import coverage, writable
from ditprune.targets.coverage import left_out
from ditprune.targets.discover import discover
from original_dit import OriginalDiT
from tiny_denoisers import Draw, redraw_

NAME = "blocks.1.attn.qkv"
OTHER = "blocks.0.mlp.fc1"


def make() -> nn.Module:
    return redraw_(OriginalDiT(), 0)


def call_of(seed: int = 1, rows: int = 2) -> dict[str, Tensor]:
    draw = Draw(seed)
    times, labels = draw.integers(1000, rows), draw.integers(10, rows)
    return {"x": draw.normal(rows, 4, 8, 8), "t": times, "y": labels}


def quantise(layer: nn.Module, denoiser: nn.Module) -> None:
    packed = torch.ao.nn.quantized.dynamic.Linear(layer.in_features, layer.out_features)
    denoiser.set_submodule(NAME, packed)


def in_bytes(layer: nn.Module, _: nn.Module) -> None:
    layer.weight = nn.Parameter(layer.weight.to(torch.uint8), requires_grad=False)


def in_float8(layer: nn.Module, _: nn.Module) -> None:
    layer.weight = nn.Parameter(layer.weight.to(torch.float8_e4m3fn), requires_grad=False)


def subclassed(layer: nn.Module, _: nn.Module) -> None:
    layer.weight = nn.Parameter(Packed(layer.weight.detach()), requires_grad=False)


def repeated(layer: nn.Module, _: nn.Module) -> None:
    layer.weight = nn.Parameter(layer.weight.detach()[:1].expand(96, 32))


def inferring(layer: nn.Module, _: nn.Module) -> None:
    with torch.inference_mode():
        layer.weight = nn.Parameter(layer.weight.clone(), requires_grad=False)


def tied_to_another(layer: nn.Module, denoiser: nn.Module) -> None:
    denoiser.also = nn.Linear(32, 96)
    denoiser.also.weight = layer.weight


def overlapping(layer: nn.Module, denoiser: nn.Module) -> None:
    whole = torch.cat([layer.weight.detach(), torch.ones(32, 32)])
    layer.weight = nn.Parameter(whole[:96])
    denoiser.also = nn.Linear(32, 64)
    denoiser.also.weight = nn.Parameter(whole[64:])


def rotated(layer: nn.Module, denoiser: nn.Module) -> None:
    denoiser.set_submodule(NAME, Rotated(layer))


CASES: dict[str, tuple[Callable[..., Any], str]] = {
    "parametrised": (
        lambda layer, _: nn.utils.parametrizations.weight_norm(layer), "remove_parametrizations"
    ),
    "weight_norm": (lambda layer, _: nn.utils.weight_norm(layer), "computed before each call"),
    "spectral_norm": (lambda layer, _: nn.utils.spectral_norm(layer), "computed before each call"),
    "torch's pruning": (
        lambda layer, _: prune.random_unstructured(layer, "weight", 0.1),
        "computed before each call",
    ),
    "quantised by torch": (quantise, "is quantised"),
    "stored in bytes": (in_bytes, "is quantised"),
    "float8": (in_float8, "stored as torch.float8_e4m3fn"),
    "tensor subclass": (subclassed, "is a Packed, a tensor subclass"),
    "repeated memory": (repeated, "repeats the same memory"),
    "tied": (tied_to_another, "also that of"),
    "overlapping": (overlapping, "also that of also"),
    "another adapter": (rotated, "fuse_lora"),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("change", "reason"), CASES.values(), ids=list(CASES))
def test_a_weight_that_cannot_be_written_has_its_reason_and_is_not_touched(
    change: Callable[..., Any], reason: str, same_bits
) -> None:
    denoiser = make()
    change(denoiser.get_submodule(NAME), denoiser)
    targets = discover(denoiser)
    assert NAME not in targets
    assert OTHER in targets
    assert len(targets) == 9
    dense = left_out(denoiser, targets)
    assert reason in dense[NAME].reason
    assert dense[NAME].num_weights >= 96 * 32 - 1
    before = [p.detach().clone() for p in denoiser.get_submodule(NAME).parameters()]
    outcome = ditprune.prune_(denoiser, saliency="magnitude")
    assert set(outcome.targets) == set(targets)
    assert reason in outcome.left_out[NAME].reason
    for parameter, old in zip(denoiser.get_submodule(NAME).parameters(), before, strict=True):
        assert torch.equal(parameter.detach().float(), old.float())


@pytest.mark.parametrize("change", [subclassed, in_float8], ids=lambda c: c.__name__)
def test_where_no_weight_can_be_written_the_reason_is_the_error(change) -> None:
    denoiser = make()
    for name in discover(denoiser):
        change(denoiser.get_submodule(name), denoiser)
    for work in (discover, lambda d: ditprune.prune_(d, saliency="magnitude")):
        with pytest.raises(ModelError, match=r"none of the 10 layers .* can be pruned; blocks\.0"):
            work(denoiser)


class Grouped(nn.Module):
    """As HQQ, GPTQ and AWQ have it: no Linear, packed integers and scales in buffers."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.infeatures, self.outfeatures = layer.in_features, layer.out_features
        size = layer.out_features, layer.in_features // 8
        self.register_buffer("qweight", torch.zeros(size, dtype=torch.int32))
        self.register_buffer("scales", torch.ones(layer.out_features, 1))


class Packed4(nn.Linear):
    """As bitsandbytes and GGUF have it: a Linear whose weight is bytes of another shape."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__(layer.in_features, layer.out_features)
        size = layer.weight.numel() // 2
        self.weight = nn.Parameter(torch.zeros(size, 1, dtype=torch.uint8), requires_grad=False)


def by_torch(denoiser: nn.Module) -> nn.Module:
    return torch.ao.quantization.quantize_dynamic(denoiser, {nn.Linear})


def each(kind: type, within: str = "") -> Callable[[nn.Module], nn.Module]:
    def quantise_(denoiser: nn.Module) -> nn.Module:
        for name, layer in list(denoiser.named_modules()):
            if isinstance(layer, nn.Linear) and within in name:
                denoiser.set_submodule(name, kind(layer))
        return denoiser

    return quantise_


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "quantise_",
    [by_torch, each(Grouped), each(Packed4), each(Packed4, "blocks.")],
    ids=["torch", "no Linear", "bytes", "bytes in blocks"],
)
@pytest.mark.parametrize("words", [{}, {"include": "*.mlp.*"}, {"blocks": "blocks.*"}], ids=str)
def test_a_model_that_is_quantised_whole_is_told_so(quantise_, words) -> None:
    denoiser = quantise_(make())
    for work in (ditprune.inspect, partial(ditprune.prune_, saliency="magnitude")):
        with pytest.raises(ModelError, match=r"all layers are quantised .*first .*prune first"):
            work(denoiser, **words)


def test_quantised_layers_beside_others_are_left_out_with_their_reason() -> None:
    plan = ditprune.inspect(each(Grouped, "attn")(make()))
    assert plan.left_out[NAME].reason == writable.QUANTISED
    assert plan.left_out[NAME].num_weights == 96 * 32
    assert OTHER in plan.targets


@pytest.mark.parametrize("name", ["float8_e4m3fn", "float8_e5m2"])
def test_layerwise_casting_is_the_reason_of_the_layers_that_it_casts(name, tiny_dit) -> None:
    denoiser = tiny_dit()
    denoiser.enable_layerwise_casting(getattr(torch, name), torch.float32)
    plan = ditprune.inspect(denoiser)
    attention = {n: layer.reason for n, layer in plan.left_out.items() if ".attn1." in n}
    assert len(attention) == 12
    assert set(attention.values()) == {writable.CAST}
    assert {n.rpartition("blocks.")[2][2:] for n in plan.targets} == {"norm1.linear"}
    outcome = ditprune.prune_(denoiser, saliency="magnitude")
    assert outcome.left_out == plan.left_out
    decisions = ditprune.runtime.sparsify_(denoiser)
    assert all("8 bits" in decisions[n].reason for n in attention)


def test_a_layer_without_values_is_refused_by_all_that_needs_them() -> None:
    denoiser = make()
    denoiser.get_submodule(NAME).to("meta")
    assert NAME in discover(denoiser)  # plans need none
    other = denoiser.get_submodule(OTHER).weight.clone()
    for work in (
        lambda: ditprune.calibrate(denoiser, [call_of()]),
        lambda: ditprune.prune_(denoiser, saliency="magnitude"),
    ):
        with pytest.raises(ModelError, match=rf"^{NAME}: .*on the meta device.*load the model"):
            work()
    assert torch.equal(denoiser.get_submodule(OTHER).weight, other)


@pytest.mark.parametrize(
    "work",
    [
        lambda denoiser: ditprune.prune_(denoiser, saliency="magnitude"),
        lambda denoiser: ditprune.calibrate(denoiser, [call_of()]),
    ],
    ids=["prune_", "calibrate"],
)
def test_a_denoiser_that_accelerate_offloads_is_told_so(work) -> None:
    from accelerate import cpu_offload

    denoiser = make()
    cpu_offload(denoiser, execution_device=torch.device("cpu"))
    with pytest.raises(ModelError, match=r"is offloaded: .*enable_model_cpu_offload"):
        work(denoiser)


def test_layers_under_a_lora_keep_their_names_and_are_pruned_in_place(same_bits) -> None:
    plain, denoiser = make(), make()
    stats = ditprune.calibrate(plain, [call_of()])
    names = wrap_all(denoiser)
    lora = [p.detach().clone() for n, p in denoiser.named_parameters() if "lora_" in n]
    assert discover(denoiser) == discover(plain)
    dense = left_out(denoiser, discover(denoiser))
    parts = {f"{name}.lora_{which}" for name in names for which in "AB"}
    assert {name: part.reason for name, part in dense.items()} == dict.fromkeys(
        parts, coverage.ADAPTER
    )
    ditprune.prune_(plain, stats)
    outcome = ditprune.prune_(denoiser, stats)  # those made before it was loaded
    assert set(outcome.targets) == set(discover(plain))
    for name in outcome.targets:
        base = denoiser.get_submodule(name)
        base = base.base_layer if isinstance(base, Lora) else base
        same_bits(base.weight, plain.get_submodule(name).weight)
    after = [p for n, p in denoiser.named_parameters() if "lora_" in n]
    assert all(torch.equal(a, b) for a, b in zip(after, lora, strict=True))


def test_what_enters_a_layer_under_a_lora_is_seen() -> None:
    denoiser = make()
    wrap_all(denoiser)
    stats = ditprune.calibrate(denoiser, [call_of()])
    assert stats.never_called == ()
    assert set(stats.fingerprints) == set(discover(denoiser))
    outcome = ditprune.prune_(
        denoiser, stats, batches=[call_of(seed) for seed in (1, 2, 3)], reconstruction="obs"
    )
    assert set(outcome.targets) == set(discover(denoiser))
    assert all(target.num_zero >= target.num_pruned > 0 for target in outcome.targets.values())


def test_weights_of_an_ip_adapter_stay_as_they_are(tiny_dit) -> None:
    denoiser = tiny_dit()
    targets = discover(denoiser)
    for block in denoiser.transformer_blocks:
        block.attn1.processor = IPAdapterAttnProcessor()
    assert discover(denoiser) == targets
    reasons = {part.name: part.reason for part in left_out(denoiser, targets).values()}
    assert reasons["transformer_blocks.0.attn1.processor"] == coverage.ADAPTER


WRAPPERS = [partial(torch.compile, backend="eager"), nn.DataParallel]


@pytest.mark.parametrize("wrap", WRAPPERS, ids=["compiled", "parallel"])
def test_a_wrapped_denoiser_keeps_its_names(wrap, same_bits) -> None:
    plain, denoiser = make(), make()
    stats = ditprune.calibrate(plain, [call_of()])
    wrapped = wrap(denoiser)
    assert ditprune.inspect(wrapped, stats).targets.keys() == discover(plain).keys()
    again = ditprune.calibrate(wrapped, [call_of()])
    assert again.fingerprints == stats.fingerprints
    ditprune.prune_(wrapped, stats)
    ditprune.prune_(plain, stats)
    for name in discover(plain):
        same_bits(denoiser.get_submodule(name).weight, plain.get_submodule(name).weight)


class ZeroFree(nn.Linear):
    """Gives a copy of its weight at each access, as a class of a user may."""

    @property
    def weight(self) -> nn.Parameter:
        return nn.Parameter(self._parameters["weight"].detach().clone())


def test_a_layer_that_hands_out_copies_is_no_target() -> None:
    denoiser = make()
    layer = denoiser.get_submodule(NAME)
    layer.__class__ = ZeroFree
    assert NAME not in discover(denoiser)


def test_a_weight_that_layers_of_the_blocks_share_alone_is_one_target() -> None:
    denoiser = make()
    first, second = (denoiser.get_submodule(f"blocks.{i}.attn.qkv") for i in range(2))
    second.weight = first.weight
    assert "blocks.0.attn.qkv" in discover(denoiser)
    assert NAME not in discover(denoiser)
    denoiser.also = nn.Embedding(96, 32)
    denoiser.also.weight = first.weight
    assert "blocks.0.attn.qkv" not in discover(denoiser)
    reason = left_out(denoiser, discover(denoiser))["blocks.0.attn.qkv"].reason
    assert "its weight is also that of" in reason
    ditprune.prune_(denoiser, saliency="magnitude")
    assert (denoiser.also.weight != 0).all()


def test_a_weight_made_in_inference_mode_is_pruned_there_only() -> None:
    denoiser = make()
    inferring(denoiser.get_submodule(NAME), denoiser)
    other = denoiser.get_submodule(OTHER).weight
    with pytest.raises(ModelError, match=rf"^{NAME}: .*load the model outside of torch.inference"):
        ditprune.prune_(denoiser, saliency="magnitude")
    assert (other != 0).all()
    with torch.inference_mode():
        assert NAME in ditprune.prune_(denoiser, saliency="magnitude").targets
    assert (denoiser.get_submodule(NAME).weight == 0).any()


def test_a_layer_that_holds_something_else_is_as_it_was_before() -> None:
    denoiser = make()
    weight = denoiser.get_submodule(NAME).weight.detach()
    before, written = weight.clone(), weight * (weight > 0)
    weight.copy_(written)
    writable.check_written(denoiser, NAME, written, before)
    weight[3, 4] = 1.5
    with pytest.raises(ModelError, match=rf"^{NAME}: 1 of 3072 weights are not what was written"):
        writable.check_written(denoiser, NAME, written, before)
    assert torch.equal(weight, before)


@pytest.mark.parametrize("words", [{}, {"reconstruction": "obs"}], ids=str)
def test_zeros_are_read_back_from_the_layer(words, monkeypatch) -> None:
    """Where the guard lets a layer through that hands out copies, the work says so."""
    denoiser = make()
    layer = denoiser.get_submodule(NAME)
    layer.__class__ = ZeroFree
    monkeypatch.setattr(coverage, "obstacle", lambda _: "")
    monkeypatch.setattr(writable, "obstacle", lambda _: "")
    before = layer._parameters["weight"].detach().clone()
    words = words or {"saliency": "magnitude"}
    stats = ditprune.calibrate(denoiser, [call_of()]) if "reconstruction" in words else None
    batches = [call_of(seed) for seed in (1, 2, 3)] if "reconstruction" in words else None
    with pytest.raises(ModelError, match=rf"^{NAME}: .*are not what was written"):
        ditprune.prune_(denoiser, stats, batches=batches, **words)
    assert torch.equal(layer._parameters["weight"], before)
