"""Every denoiser of the matrix and every foreign build: cut exactly, or whole with the reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, scaled_dot_product_attention, softmax

from ditprune.calls import Call
from ditprune.denoiser.blockwise.residence import OnDisk
from ditprune.denoiser.placement import Placement
from ditprune.denoiser.replay import run_call, tensors_in
from ditprune.errors import ModelError
from ditprune.shrinking.checks import check_block, check_groups
from ditprune.shrinking.find import find_groups
from ditprune.shrinking.in_place import cut_
from ditprune.shrinking.twins import twin_of, without_columns
from ditprune.shrinking.units import Cut, UnitGroup, Whole
from ditprune.targets.blocks import find_blocks
from foreign_builds import BUILDS, WIDTH, Denoiser, mlp, noise
from foreign_builds import calls as foreign_calls
from tiny_denoisers import FAMILIES, Draw, exported

# Warnings of diffusers and torch about their own code paths, raised by some constructors and calls.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*is deprecated and will be removed:FutureWarning"),
    pytest.mark.filterwarnings("ignore:In CPU autocast, but the target dtype:UserWarning"),
    pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile:UserWarning"),
]

# (attentions, MLPs) that can be cut, counted by eye in the classes of the matrix.
CUT = {
    "DiTTransformer2DModel": (2, 2), "PixArtTransformer2DModel": (4, 2),
    "SanaTransformer2DModel": (4, 2), "HunyuanDiT2DModel": (8, 4), "LuminaNextDiT2DModel": (0, 2),
    "Lumina2Transformer2DModel": (0, 4), "ZImageTransformer2DModel": (4, 4),
    "BriaFibo2Transformer2DModel": (5, 4), "PRXTransformer2DModel": (2, 2),
    "Transformer2DModel": (4, 2), "DreamLiteTransformer2DModel": (4, 2), "UVit2DModel": (4, 2),
    "UNet2DConditionModel": (12, 6), "SD3Transformer2DModel": (4, 5),
    "AuraFlowTransformer2DModel": (4, 6), "FluxTransformer2DModel": (4, 6),
    "BriaTransformer2DModel": (4, 6), "ChromaTransformer2DModel": (4, 6),
    "LongCatImageTransformer2DModel": (4, 6), "OvisImageTransformer2DModel": (4, 6),
    "BriaFiboTransformer2DModel": (4, 6), "Flux2Transformer2DModel": (4, 6),
    "Flux3Transformer2DModel": (6, 6), "QwenImageTransformer2DModel": (2, 4),
    "QwenImage21Transformer2DModel": (2, 2), "CogView3PlusTransformer2DModel": (2, 2),
    "CogView4Transformer2DModel": (2, 2), "GlmImageTransformer2DModel": (2, 2),
    "HiDreamImageTransformer2DModel": (0, 6), "HunyuanImageTransformer2DModel": (4, 6),
    "NucleusMoEImageTransformer2DModel": (5, 5), "ErnieImageTransformer2DModel": (2, 2),
    "Ideogram4Transformer2DModel": (2, 2), "Krea2Transformer2DModel": (2, 2),
    "OmniGenTransformer2DModel": (0, 2), "JoyImageEditTransformer3DModel": (2, 4),
    "JoyImageEditPlusTransformer3DModel": (2, 4), "WanTransformer3DModel": (0, 2),
    "SkyReelsV2Transformer3DModel": (0, 2), "WanVACETransformer3DModel": (0, 4),
    "WanAnimateTransformer3DModel": (1, 2), "WanAnimate2Transformer3DModel": (0, 2),
    "ChronoEditTransformer3DModel": (0, 2), "AnyFlowTransformer3DModel": (0, 2),
    "AnyFlowFARTransformer3DModel": (0, 2), "HeliosTransformer3DModel": (0, 2),
    "CogVideoXTransformer3DModel": (2, 2), "ConsisIDTransformer3DModel": (2, 2),
    "EasyAnimateTransformer3DModel": (1, 3), "HunyuanVideoTransformer3DModel": (4, 6),
    "HunyuanVideoFramepackTransformer3DModel": (4, 6),
    "HunyuanVideo15Transformer3DModel": (2, 4), "MotifVideoTransformer3DModel": (4, 6),
    "MochiTransformer3DModel": (0, 3), "AllegroTransformer3DModel": (4, 2),
    "LatteTransformer3DModel": (6, 4), "TransformerTemporalModel": (4, 2),
    "LTXVideoTransformer3DModel": (0, 2), "LTX2VideoTransformer3DModel": (0, 4),
    "LTX2VideoDiffusionDecoderModel": (4, 4), "SanaWMLTX2RefinerTransformer3DModel": (0, 2),
    "SanaVideoTransformer3DModel": (0, 2), "SanaWMTransformer3DModel": (0, 2),
    "CosmosTransformer3DModel": (4, 2), "Cosmos3OmniTransformer": (0, 4),
    "Kandinsky5Transformer3DModel": (6, 4), "Kandinsky6Transformer3DModel": (14, 6),
    "Kandinsky6SRTransformer3DModel": (2, 2), "MiniMaxH3Transformer3DModel": (2, 2),
    "StableAudioDiTModel": (2, 2), "StableAudio3DiTModel": (4, 2),
    "AceStepTransformer1DModel": (0, 2), "LongCatAudioDiTTransformer": (0, 2),
    "MiniMaxMusic3Transformer1DModel": (2, 2), "T5FilmDecoder": (4, 2),
    "PriorTransformer": (0, 2), "RFD4ProteinaTransformer": (0, 4),
}  # fmt: skip
# Cut everywhere at once, too.
TOGETHER = {
    "FluxTransformer2DModel", "SD3Transformer2DModel", "Flux2Transformer2DModel",
    "SanaTransformer2DModel", "WanTransformer3DModel", "HunyuanDiT2DModel",
    "UNet2DConditionModel", "PRXTransformer2DModel",
}  # fmt: skip
# Why attentions and MLPs of some classes stay whole: how many, and words of the reason.
WHOLE: dict[str, dict[str, int]] = {
    "LuminaNextDiT2DModel": {"run across heads": 2, "no projection of what": 2},
    "Lumina2Transformer2DModel": {"one head of keys and values": 4},  # in this configuration
    "Flux3Transformer2DModel": {"does not reach it": 4},  # there is no image to edit
    "HiDreamImageTransformer2DModel": {"run across heads": 4, "a router sends it": 16},
    "OmniGenTransformer2DModel": {"does not run (shape": 2},  # it says the width of its input
    "WanTransformer3DModel": {"run across heads": 4},
    "SkyReelsV2Transformer3DModel": {"run across heads": 4},
    "WanVACETransformer3DModel": {"run across heads": 8},
    "WanAnimateTransformer3DModel": {"run across heads": 4},
    "WanAnimate2Transformer3DModel": {"run across heads": 4},
    "ChronoEditTransformer3DModel": {"run across heads": 4},
    "AnyFlowTransformer3DModel": {"run across heads": 4},
    "AnyFlowFARTransformer3DModel": {"run across heads": 4},
    "HeliosTransformer3DModel": {"run across heads": 4},
    "EasyAnimateTransformer3DModel": {"does not run (The size": 1},  # no projection for the text
    "MochiTransformer3DModel": {"does not run (": 2},  # learnt rotations for each head
    "LTXVideoTransformer3DModel": {"run across heads": 4},
    "LTX2VideoTransformer3DModel": {"run across heads": 12},
    "SanaWMLTX2RefinerTransformer3DModel": {"run across heads": 12, "does not reach it": 2},
    "SanaVideoTransformer3DModel": {"run across heads": 4},
    "SanaWMTransformer3DModel": {"run across heads": 4},
    "Cosmos3OmniTransformer": {"one head of keys and values": 2},
    "StableAudioDiTModel": {"one head of keys and values": 2},
    "StableAudio3DiTModel": {"does not reach it": 2},  # no audio to fill in
    "AceStepTransformer1DModel": {"one head of keys and values": 4},
    "LongCatAudioDiTTransformer": {"run across heads": 4},
    "PriorTransformer": {"does not run (": 2},  # its mask has a row for each head
    "RFD4ProteinaTransformer": {"run across heads": 3},
}


def paths(denoiser: nn.Module) -> list[str]:
    return [block.path for block in find_blocks(denoiser) if not block.auxiliary]


def checked(denoiser: nn.Module, call: Any) -> tuple[dict[str, UnitGroup], list[Whole]]:
    groups, whole = find_groups(denoiser, paths(denoiser))
    good, failed = check_groups(denoiser, Call.of(call), groups)
    return good, whole + failed


def halved(groups: dict[str, UnitGroup]) -> Cut:
    """Every second unit goes."""
    return Cut(groups, {name: range(0, group.num_units, 2) for name, group in groups.items()})


def agree_when_all_are_cut(denoiser: nn.Module, call: Any, groups: dict[str, UnitGroup]) -> None:
    """Groups that were tried apart can go together: the whole denoiser says so."""
    cut, columns = halved(groups), {}
    for name, group in groups.items():
        for consumer in group.consumers:
            gone = consumer.columns[group.removed(cut.kept[name])].reshape(-1)
            columns.setdefault(consumer.layer, []).append(gone)
    zeroed = without_columns(denoiser, {n: torch.cat(gone) for n, gone in columns.items()})
    smaller = twin_of(denoiser)
    cut_(smaller, cut)
    assert num_weights(smaller) < num_weights(denoiser)
    expected = [tensor for _, tensor in tensors_in(run_call(zeroed, Call.of(call).copied()))]
    got = [tensor for _, tensor in tensors_in(run_call(smaller, call))]
    for a, b in zip(expected, got, strict=True):
        torch.testing.assert_close(b, a, rtol=0, atol=2e-5 * float(a.abs().max()))


def num_weights(denoiser: nn.Module) -> int:
    return sum(parameter.numel() for parameter in denoiser.parameters())


@pytest.mark.parametrize("name", exported(FAMILIES))
def test_every_class_of_the_matrix(name: str) -> None:
    family = FAMILIES[name]
    denoiser = family.make()
    good, whole = checked(denoiser, family.call(Draw(0)))
    kinds = Counter(group.kind for group in good.values())
    print(f"{name}: {kinds['heads']} attentions and {kinds['neurons']} MLPs go, stay: {whole}")
    assert (kinds["heads"], kinds["neurons"]) == CUT[name]
    reasons = WHOLE.get(name, {})
    assert {words: sum(words in item.reason for item in whole) for words in reasons} == reasons
    assert len(whole) == sum(reasons.values())
    if name in TOGETHER:
        agree_when_all_are_cut(denoiser, family.call(Draw(1)), good)


GROUPED = {
    "Lumina2Transformer2DModel": {
        "hidden_size": 64, "num_attention_heads": 4, "num_kv_heads": 2
    },
    "AceStepTransformer1DModel": {"num_attention_heads": 4, "num_key_value_heads": 2},
    "Cosmos3OmniTransformer": {"num_attention_heads": 4, "num_key_value_heads": 2},
    "StableAudioDiTModel": {
        "num_attention_heads": 4, "num_key_value_attention_heads": 2, "cross_attention_dim": 32
    },
}  # fmt: skip


@pytest.mark.parametrize("name", exported(GROUPED))
def test_keys_and_values_go_with_their_queries(name: str) -> None:
    family = FAMILIES[name]
    family = replace(family, config=family.config | GROUPED[name])
    denoiser = family.make()
    good, whole = checked(denoiser, family.call(Draw(0)))
    assert whole == []
    assert {group.num_units for group in good.values() if group.kind == "heads"} <= {2, 4}
    agree_when_all_are_cut(denoiser, family.call(Draw(1)), good)


# What stays whole in foreign builds, other than attentions of one head that say no number.
STAY = {
    "the_attention_of_torch": "nn.MultiheadAttention refuses",
    "the_encoder_layers_of_torch": "nn.MultiheadAttention refuses",
    "the_encoder_of_torch": "nn.MultiheadAttention refuses",
    "flat_projections": "no projection of what its heads give",
    "flat_and_fused_projections": "no projection of what its heads give",
    "two_kinds_of_blocks": "no projection of what its heads give",
}


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # an open file
@pytest.mark.parametrize("name", BUILDS)
def test_every_foreign_build(name: str) -> None:
    torch.manual_seed(0)
    denoiser, calls = BUILDS[name]()
    good, whole = checked(denoiser.eval(), calls[0])
    assert {group.kind for group in good.values()} == {"neurons"}
    assert {group.num_units for group in good.values()} == {2 * WIDTH}
    words = STAY.get(name, "does not say how many heads")
    assert all(words in item.reason or "how many heads" in item.reason for item in whole)


# --- Denoisers as others write them, with heads ---


class SelfAttention(nn.Module):
    """Only its layers are called, by the block."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)


class DoubleBlock(nn.Module):
    """Two streams that attend together, as in black-forest-labs/flux."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads = 4
        self.img_attn, self.txt_attn = SelfAttention(), SelfAttention()
        self.img_mlp, self.txt_mlp = mlp(), mlp()

    def heads(self, qkv: Tensor) -> Tensor:
        return qkv.unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)

    def forward(self, h: Tensor) -> Tensor:
        img, txt = h[:, 2:], h[:, :2]
        parts = zip(
            self.heads(self.txt_attn.qkv(txt)), self.heads(self.img_attn.qkv(img)), strict=False
        )
        q, k, v = (torch.cat(pair, dim=2) for pair in parts)
        mixed = scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        img, txt = img + self.img_attn.proj(mixed[:, 2:]), txt + self.txt_attn.proj(mixed[:, :2])
        return torch.cat([txt + self.txt_mlp(txt), img + self.img_mlp(img)], dim=1)


class SingleBlock(nn.Module):
    """Attention and MLP in two Linears, as in black-forest-labs/flux."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads, self.hidden_size, self.mlp_hidden_dim = 4, WIDTH, 4 * WIDTH
        self.linear1, self.linear2 = nn.Linear(WIDTH, 7 * WIDTH), nn.Linear(5 * WIDTH, WIDTH)

    def forward(self, h: Tensor) -> Tensor:
        sizes = [3 * self.hidden_size, self.mlp_hidden_dim]
        qkv, up = torch.split(self.linear1(h), sizes, dim=-1)
        q, k, v = qkv.unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return h + self.linear2(torch.cat([mixed, gelu(up)], dim=-1))


class SideBySide(nn.Module):
    """Query, key and value of a head, and gate and value of a neuron, lie side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads = 4
        self.query_key_value, self.dense = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.gate_up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, h: Tensor) -> Tensor:
        heads = self.query_key_value(h).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        mixed = scaled_dot_product_attention(*heads.chunk(3, dim=-1)).transpose(1, 2)
        h = h + self.dense(mixed.flatten(2))
        gate, up = self.gate_up(h).unflatten(-1, (-1, 2)).unbind(-1)
        return h + self.down(gelu(gate) * up)


class PerHead(SideBySide):
    """A bias, a scale and a gate for each head, in a parameter, a buffer and a Linear."""

    def __init__(self) -> None:
        super().__init__()
        self.attn = nn.Module()
        self.attn.num_heads, self.attn.sink = 4, nn.Parameter(torch.randn(1, 4, 1, 1))
        self.attn.qkv, self.attn.proj = self.query_key_value, self.dense
        self.attn.to_gate_logits = nn.Linear(WIDTH, 4)
        self.attn.register_buffer("scale", torch.rand(4))
        del self.query_key_value, self.dense

    def forward(self, h: Tensor) -> Tensor:
        attn = self.attn
        q, k, v = attn.qkv(h).unflatten(-1, (3, attn.num_heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = scaled_dot_product_attention(q * attn.scale[:, None, None], k, v, attn.sink)
        gates = attn.to_gate_logits(h).sigmoid().transpose(1, 2)[..., None]
        h = h + attn.proj((mixed * gates).transpose(1, 2).flatten(2))
        gate, up = self.gate_up(h).chunk(2, dim=-1)
        return h + self.down(gelu(gate) * up)


class TwoStreams(nn.Module):
    """Keys and values of fewer heads, and layers for each stream right in the block; it says its
    width where it means that of its heads.
    """

    def __init__(self) -> None:
        super().__init__()
        self.heads_num, self.kv_heads, self.hidden_size = 4, 2, WIDTH
        self.qkv_x, self.qkv_y = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(WIDTH, 2 * WIDTH)
        self.proj_x, self.proj_y = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.mlp_x, self.mlp_y = mlp(), mlp()

    def forward(self, h: Tensor) -> Tensor:
        x, y = h[:, 2:], h[:, :2]
        qkv = torch.cat([self.qkv_y(y), self.qkv_x(x)], dim=1)
        q, kv = qkv.split([self.hidden_size, qkv.shape[-1] - self.hidden_size], dim=-1)
        q = q.unflatten(-1, (self.heads_num, -1)).transpose(1, 2)
        k, v = (
            half.unflatten(-1, (self.kv_heads, -1)).transpose(1, 2).repeat_interleave(2, dim=1)
            for half in kv.chunk(2, dim=-1)
        )
        mixed = scaled_dot_product_attention(q, k, v).transpose(1, 2)
        mixed = mixed.reshape(*h.shape[:2], self.hidden_size)
        x, y = x + self.proj_x(mixed[:, 2:]), y + self.proj_y(mixed[:, :2])
        return torch.cat([y + self.mlp_y(y), x + self.mlp_x(x)], dim=1)


def of_blocks(block: type[nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    made = type("Build", (Denoiser,), {"block": block, "depth": 2})
    return made().eval()


@pytest.mark.parametrize(
    ("block", "names"),
    [
        (DoubleBlock, ["heads", "img_mlp", "txt_mlp"]),
        (SingleBlock, ["heads", "neurons"]),
        (SideBySide, ["heads", "neurons"]),
        (PerHead, ["", "attn"]),
        (TwoStreams, ["", "mlp_x", "mlp_y"]),
    ],
)
def test_what_others_write(block: type[nn.Module], names: Sequence[str]) -> None:
    denoiser, call = of_blocks(block), foreign_calls()[0]
    good, whole = checked(denoiser, call)
    assert whole == []
    expected = [f"blocks.{i}.{name}".rstrip(".") for i in (0, 1) for name in names]
    assert sorted(good) == sorted(expected)
    agree_when_all_are_cut(denoiser, call, good)


def test_parameters_and_buffers_with_a_place_for_each_head_go_too() -> None:
    denoiser = of_blocks(PerHead)
    good, _ = checked(denoiser, foreign_calls()[0])
    cut_(denoiser, Cut(good, {"blocks.0.attn": [1, 3]}))
    attn = denoiser.blocks[0].attn
    sizes = (attn.sink.shape, attn.scale.shape, attn.to_gate_logits.weight.shape)
    assert sizes == ((1, 2, 1, 1), (2,), (2, WIDTH))
    assert (attn.num_heads, denoiser.blocks[1].attn.num_heads) == (2, 4)


# --- What a wrong guess, or an unlucky call, comes to ---


class Normed(nn.Module):
    """A softmax over its neurons, which no name tells of."""

    def __init__(self) -> None:
        super().__init__()
        self.attn, self.mlp = SelfAttention(), mlp()

    def forward(self, h: Tensor) -> Tensor:
        h = h + self.attn.proj(scaled_dot_product_attention(*self.attn.qkv(h).chunk(3, -1)))
        return h + self.mlp[2](softmax(self.mlp[0](h), -1))


def test_units_that_change_others_stay_and_how_much_is_said() -> None:
    good, whole = checked(of_blocks(Normed), foreign_calls()[0])
    assert good == {}
    reason = next(item.reason for item in whole if item.name == "blocks.0.mlp")
    assert "something else than with their outputs zeroed (by " in reason


def test_outputs_that_are_not_finite_decide_nothing() -> None:
    call = foreign_calls()[0]
    call["x"][0, 0, 0] = torch.inf
    _, whole = checked(of_blocks(SingleBlock), call)
    assert {item.reason for item in whole} == {"its outputs are not finite in this call"}


def test_half_precision_is_tried_in_float32() -> None:
    family = FAMILIES["FluxTransformer2DModel"]
    denoiser = family.make().to(torch.bfloat16)
    call = Call.of(family.call(Draw(0))).map(
        lambda leaf: leaf.bfloat16() if leaf.is_floating_point() else leaf
    )
    good, whole = checked(denoiser, call)
    assert len(good) == sum(CUT[family.name])
    assert whole == []
    assert {parameter.dtype for parameter in denoiser.parameters()} == {torch.bfloat16}


def test_a_denoiser_that_is_tried_stays_as_it_is() -> None:
    family = FAMILIES["SanaTransformer2DModel"]
    denoiser = family.make()
    before = {name: tensor.clone() for name, tensor in denoiser.state_dict().items()}
    heads = [vars(m).copy() for m in denoiser.modules() if "heads" in vars(m)]
    denoiser.train()
    checked(denoiser, family.call(Draw(0)))
    after = denoiser.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert [m.heads for m in denoiser.modules() if "heads" in vars(m)] == [
        h["heads"] for h in heads
    ]
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in denoiser.modules())
    assert all(module.training for module in denoiser.modules())


def test_one_block_is_tried_with_what_it_gets() -> None:
    denoiser = of_blocks(SingleBlock)
    groups, _ = find_groups(denoiser, ["blocks.1"])
    block = denoiser.blocks[1]
    assert check_block(block, "blocks.1", Call((noise(2, 6, WIDTH),)), groups) == {}
    block.hidden_size = WIDTH + 1  # what it splits by is no longer what it says
    groups["blocks.1.heads"] = replace(groups["blocks.1.heads"], numbers=())
    reasons = check_block(block, "blocks.1", Call((noise(2, 6, WIDTH),)), groups)
    assert "does not run" in reasons["blocks.1.heads"]


def test_a_denoiser_on_disk_is_tried_block_by_block(tmp_path: Path) -> None:
    family = FAMILIES["FluxTransformer2DModel"]
    denoiser, call = family.make(), Call.of(family.call(Draw(0)))
    denoiser.save_pretrained(tmp_path)
    on_disk = OnDisk(tmp_path, paths(denoiser), Placement())
    groups, _ = find_groups(on_disk.denoiser, paths(denoiser))
    with on_disk.running():
        good, whole = check_groups(on_disk.denoiser, call, groups)
    assert list(good) == list(groups)
    assert whole == []
    assert on_disk.denoiser.transformer_blocks[0].attn.to_q.weight.is_meta
    with pytest.raises(ModelError, match=r"transformer_blocks\.0\..*meta device"):
        check_block(on_disk.denoiser.transformer_blocks[0], "transformer_blocks.0", call, groups)
