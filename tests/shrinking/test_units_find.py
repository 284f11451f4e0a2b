"""What goes with each unit of the denoisers that people use, counted by hand."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor, nn

from adapters import IPAdapterAttnProcessor, Lora, Rotated
from ditprune.errors import ModelError
from ditprune.shrinking.find import find_groups
from ditprune.shrinking.units import UnitGroup
from ditprune.targets.blocks import find_blocks
from foreign_builds import Denoiser
from tiny_denoisers import FAMILIES

# Of the second unit of each group: the runs of places in each weight, "+" where biases go along,
# and how much numbers go down for each unit.
GQA = {"num_attention_heads": 4, "num_kv_heads": 2, "hidden_size": 64}
QKV = {"to_q +": "0 16:32", "to_k +": "0 16:32", "to_v +": "0 16:32"}
ADDED = {"add_q_proj +": "0 16:32", "add_k_proj +": "0 16:32", "add_v_proj +": "0 16:32"}
OUT = {"to_out.0": "1 16:32"}
HEADS = {"heads": 1, "inner_dim": 16}
OLDER = {"heads": 1, "inner_dim": 16, "inner_kv_dim": 16, "sliceable_head_dim": 1}
BY_HAND: list[tuple[str, dict[str, Any], str, int, dict[str, str], dict[str, int]]] = [
    ("DiTTransformer2DModel", {}, "transformer_blocks.0.attn1", 2, QKV | OUT, OLDER),
    ("DiTTransformer2DModel", {}, "transformer_blocks.0.ff", 128,
     {"net.0.proj +": "0 1:2", "net.2": "1 1:2"}, {}),
    ("PixArtTransformer2DModel", {}, "transformer_blocks.1.attn2", 2, QKV | OUT, OLDER),
    ("SD3Transformer2DModel", {}, "transformer_blocks.1.attn", 2,
     QKV | OUT | ADDED | {"to_add_out": "1 16:32"}, OLDER),
    ("SD3Transformer2DModel", {}, "transformer_blocks.2.attn", 2, QKV | OUT | ADDED, OLDER),
    ("FluxTransformer2DModel", {}, "transformer_blocks.0.attn", 2,
     QKV | OUT | ADDED | {"to_add_out": "1 16:32"}, HEADS),
    ("FluxTransformer2DModel", {}, "single_transformer_blocks.0.attn", 2,
     QKV | {"proj_out": "1 16:32"}, HEADS),
    ("FluxTransformer2DModel", {}, "single_transformer_blocks.0", 128,
     {"proj_mlp +": "0 1:2", "proj_out": "1 33:34"}, {"mlp_hidden_dim": 1}),
    ("OvisImageTransformer2DModel", {}, "single_transformer_blocks.0", 128,
     {"proj_mlp +": "0 1:2 129:130", "proj_out": "1 33:34"}, {"mlp_hidden_dim": 1}),
    ("Flux2Transformer2DModel", {}, "transformer_blocks.0.ff_context", 96,
     {"linear_in": "0 1:2 97:98", "linear_out": "1 1:2"}, {}),
    ("Flux2Transformer2DModel", {}, "single_transformer_blocks.1.attn.heads", 2,
     {"to_qkv_mlp_proj": "0 16:32 48:64 80:96", "to_out": "1 16:32"}, HEADS),
    ("Flux2Transformer2DModel", {}, "single_transformer_blocks.1.attn.neurons", 96,
     {"to_qkv_mlp_proj": "0 97:98 193:194", "to_out": "1 33:34"}, {"mlp_hidden_dim": 1}),
    ("SanaTransformer2DModel", {}, "transformer_blocks.0.ff", 80,
     {"conv_inverted +": "0 1:2 81:82", "conv_depth +": "0 1:2 81:82", "conv_point": "1 1:2"}, {}),
    ("QwenImageTransformer2DModel", {}, "transformer_blocks.0.attn", 2,
     QKV | OUT | ADDED | {"to_add_out": "1 16:32"}, OLDER),
    ("WanTransformer3DModel", {}, "blocks.0.ffn", 48,
     {"net.0.proj +": "0 1:2", "net.2": "1 1:2"}, {}),
    ("Lumina2Transformer2DModel", GQA, "layers.0.attn", 2,
     {"to_q": "0 32:64", "to_k": "0 16:32", "to_v": "0 16:32", "to_out.0": "1 32:64"},
     {"heads": 2, "inner_dim": 32, "inner_kv_dim": 16, "sliceable_head_dim": 2}),
    ("ZImageTransformer2DModel", {}, "layers.0.feed_forward", 85,
     {"w1": "0 1:2", "w3": "0 1:2", "w2": "1 1:2"}, {}),
    ("Krea2Transformer2DModel", {}, "transformer_blocks.0.attn", 2,
     {"to_q": "0 32:64", "to_k": "0 16:32", "to_v": "0 16:32", "to_gate": "0 32:64",
      "to_out.0": "1 32:64"}, {"num_heads": 2, "num_kv_heads": 1}),
    ("PRXTransformer2DModel", {}, "blocks.0.attention", 2,
     {"img_qkv_proj": "0 16:32 48:64 80:96", "txt_kv_proj": "0 16:32 48:64", "to_out.0": "1 16:32"},
     HEADS),
]  # fmt: skip


def runs(places: Tensor) -> str:
    """Places in order as `first:behind the last` of each run."""
    values = places.tolist()
    breaks = [i for i, (a, b) in enumerate(pairwise(values), 1) if b != a + 1]
    pieces = [values[a:b] for a, b in pairwise([0, *breaks, len(values)])]
    return " ".join(f"{piece[0]}:{piece[-1] + 1}" for piece in pieces)


def of_second(group: UnitGroup) -> dict[str, str]:
    """Where the second unit of a group is, by the name of the layer below the module."""
    weights = {part.tensor: f"{part.dim} {runs(part.places[1])}" for part in group.parts}
    places = {}
    for name, text in weights.items():
        layer, _, leaf = name.rpartition(".")
        if leaf == "weight":
            has_bias = weights.get(f"{layer}.bias") == text
            places[layer + " +" * has_bias] = text
    return places


def on_meta(name: str, **more: Any) -> nn.Module:
    with torch.device("meta"):
        return getattr(diffusers, name)(**FAMILIES[name].config | more)


def paths(denoiser: nn.Module) -> list[str]:
    return [block.path for block in find_blocks(denoiser) if not block.auxiliary]


@pytest.mark.parametrize(
    ("name", "more", "group", "num_units", "places", "numbers"), BY_HAND,
    ids=[f"{name}:{group}" for name, _, group, *_ in BY_HAND],
)  # fmt: skip
def test_what_goes_with_a_unit(name, more, group, num_units, places, numbers) -> None:
    if name not in dir(diffusers):
        pytest.skip(f"diffusers {diffusers.__version__} has no {name}")
    denoiser = on_meta(name, **more)
    groups, _ = find_groups(denoiser, paths(denoiser))
    found = groups[group]
    assert found.num_units == num_units
    block = f"{found.block}."
    told = {path.removeprefix(block): text for path, text in of_second(found).items()}
    module = found.name.removeprefix(block).removesuffix(f".{found.kind}")
    below = {path.removeprefix(f"{module}."): text for path, text in told.items()}
    assert below == places
    assert {number.name: number.per_unit for number in found.numbers} == numbers
    consumers = {c.layer: runs(c.columns[1]) for c in found.consumers}
    columns = {p.tensor: runs(p.places[1]) for p in found.parts if p.dim == 1}
    assert {f"{layer}.weight": text for layer, text in consumers.items()} == columns


def test_norms_across_heads_keep_them_and_say_so() -> None:
    denoiser = on_meta("WanTransformer3DModel")
    groups, whole = find_groups(denoiser, paths(denoiser))
    assert {group.kind for group in groups.values()} == {"neurons"}
    assert {item.name for item in whole} == {f"blocks.{i}.attn{j}" for i in (0, 1) for j in (1, 2)}
    assert all("run across heads" in item.reason for item in whole)


def test_experts_that_a_router_feeds_stay_and_those_that_all_share_go() -> None:
    denoiser = on_meta("HiDreamImageTransformer2DModel")
    groups, whole = find_groups(denoiser, paths(denoiser))
    routed = [item for item in whole if "router" in item.reason]
    assert len(routed) == 16
    assert {name.rpartition(".")[2] for name in groups} == {"shared_experts", "ff_t"}


def test_what_other_blocks_hold_too_stays_whole() -> None:
    denoiser = Denoiser()
    first, second = denoiser.blocks[0], type(denoiser).block()
    denoiser.blocks.append(second)
    second.mlp[0].weight = first.mlp[0].weight
    groups, whole = find_groups(denoiser, paths(denoiser))
    assert groups == {}
    reasons = {item.name: item.reason for item in whole if item.kind == "neurons"}
    assert "blocks.0.mlp.0.weight is also blocks.1.mlp.0.weight" in reasons["blocks.0.mlp"]
    assert "blocks.1.mlp.0.weight is also blocks.0.mlp.0.weight" in reasons["blocks.1.mlp"]


def test_a_block_that_runs_twice_stays_whole() -> None:
    denoiser = Denoiser()
    denoiser.blocks.append(denoiser.blocks[0])
    groups, whole = find_groups(denoiser, paths(denoiser))
    assert groups == {}
    assert any("is also blocks.1.mlp" in item.reason for item in whole)


@pytest.mark.parametrize(
    ("wrap", "said"),
    [
        (Lora, r"blocks\.0\.mlp\.0: an adapter .*fuse_lora.*unload_lora_weights"),
        (Rotated, r"blocks\.0\.mlp\.0: an adapter"),
    ],
)
def test_adapters_are_refused_with_the_way_out(wrap, said) -> None:
    denoiser = Denoiser()
    denoiser.blocks[0].mlp[0] = wrap(denoiser.blocks[0].mlp[0])
    with pytest.raises(ModelError, match=said):
        find_groups(denoiser, ["blocks.0"])


def test_an_ip_adapter_is_refused_with_the_way_out() -> None:
    denoiser = on_meta("PixArtTransformer2DModel")
    denoiser.transformer_blocks[0].attn2.processor = IPAdapterAttnProcessor()
    with pytest.raises(ModelError, match=r"attn2\.processor: IPAdapter.*unload_ip_adapter"):
        find_groups(denoiser, ["transformer_blocks.0"])


def test_fused_projections_are_refused_with_the_way_out() -> None:
    denoiser = FAMILIES["FluxTransformer2DModel"].make()
    denoiser.fuse_qkv_projections()
    with pytest.raises(ModelError, match="unfuse_qkv_projections"):
        find_groups(denoiser, paths(denoiser))


def test_quantised_layers_stay_with_the_reason() -> None:
    denoiser = Denoiser()
    layer = denoiser.blocks[0].mlp[2]
    layer.weight = nn.Parameter(layer.weight.to(torch.int8), requires_grad=False)
    _, whole = find_groups(denoiser, ["blocks.0"])
    assert any("blocks.0.mlp.2: its weight is quantised" in item.reason for item in whole)
