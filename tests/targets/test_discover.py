"""Which layers are targets: the published counts, and modules of the user's own."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ditprune.errors import ModelError
from ditprune.targets.discover import discover, role_of


def dit_xl_2() -> nn.Module:
    from diffusers import DiTTransformer2DModel

    return DiTTransformer2DModel(
        num_attention_heads=16,
        attention_head_dim=72,
        num_layers=28,
        sample_size=32,
        out_channels=8,
        num_embeds_ada_norm=1000,
    )


def flux_1_dev() -> nn.Module:
    from diffusers import FluxTransformer2DModel

    return FluxTransformer2DModel(guidance_embeds=True)


def pixart_sigma() -> nn.Module:
    from diffusers import PixArtTransformer2DModel

    return PixArtTransformer2DModel(sample_size=128, caption_channels=4096)


def sana_1600m() -> nn.Module:
    from diffusers import SanaTransformer2DModel

    return SanaTransformer2DModel()


@pytest.mark.parametrize(
    ("make", "num_targets", "num_weights"),
    [
        (dit_xl_2, 28 * 7, 668_860_416),
        (flux_1_dev, 19 * 14 + 38 * 6, 11_834_228_736),
        (pixart_sigma, 28 * 10, 594_542_592),
    ],
)
def test_published_models_have_the_published_counts(make, num_targets, num_weights) -> None:
    with torch.device("meta"):
        denoiser = make()
    targets = discover(denoiser)
    assert len(targets) == num_targets
    assert sum(target.num_weights for target in targets.values()) == num_weights


def test_half_of_sana_are_pointwise_convolutions() -> None:
    with torch.device("meta"):
        denoiser = sana_1600m()
    num_weights = {"linear": 0, "convolution": 0}
    for name, target in discover(denoiser).items():
        num_weights[target.kind] += target.num_weights
        is_convolution = name.endswith((".ff.conv_inverted", ".ff.conv_point"))
        assert is_convolution == (target.kind == "convolution")
    # by hand: 20 blocks of 2,240 channels; eight square Linears, and 2.5 times the channels gated
    assert num_weights == {
        "linear": 20 * 8 * 2240**2,
        "convolution": 20 * (2240 * 2 * 5600 + 5600 * 2240),
    }


def test_targets_are_the_linears_of_the_blocks_without_their_embedders(tiny_dit) -> None:
    denoiser = tiny_dit()
    names = list(discover(denoiser))
    assert names == [
        f"transformer_blocks.{i}.{leaf}"
        for i in range(3)
        for leaf in (
            "norm1.linear", "attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0",
            "ff.net.0.proj", "ff.net.2",
        )
    ]  # fmt: skip
    embedders = [n for n, _ in denoiser.named_modules() if n.endswith("timestep_embedder.linear_1")]
    assert embedders[0].startswith("transformer_blocks.0.")  # diffusers keeps them in the blocks


def test_a_target_knows_its_shape_role_and_place(tiny_dit) -> None:
    targets = discover(tiny_dit())
    modulation = targets["transformer_blocks.2.norm1.linear"]
    assert modulation.shape == (192, 32)
    assert modulation.num_weights == 192 * 32
    assert (modulation.block, modulation.depth) == ("transformer_blocks.2", 2)
    roles = {name.removeprefix("transformer_blocks.1."): t.role for name, t in targets.items()}
    assert roles["norm1.linear"] == "modulation"
    assert roles["attn1.to_q"] == roles["attn1.to_out.0"] == "attention"
    assert roles["ff.net.0.proj"] == roles["ff.net.2"] == "mlp"


@pytest.mark.parametrize(
    ("name", "role"),
    [
        ("adaLN_modulation.1", "modulation"),
        ("norm1_context.linear", "modulation"),
        ("img_mod.1", "modulation"),
        ("attn.qkv", "attention"),
        ("attn.add_k_proj", "attention"),
        ("attn2.to_out.0", "attention"),
        ("attn.proj", "attention"),
        ("mlp.fc1", "mlp"),
        ("ff_context.net.2", "mlp"),
        ("something", "other"),
    ],
)
def test_roles_follow_from_names(name: str, role: str) -> None:
    assert role_of(name) == role


def test_a_dit_written_like_the_original_needs_no_diffusers(original_dit) -> None:
    targets = discover(original_dit())
    assert {name: target.role for name, target in targets.items()} == {
        f"blocks.{i}.{leaf}": role
        for i in range(2)
        for leaf, role in (
            ("attn.qkv", "attention"), ("attn.proj", "attention"), ("mlp.fc1", "mlp"),
            ("mlp.fc2", "mlp"), ("adaLN_modulation.1", "modulation"),
        )
    }  # fmt: skip


def test_a_wrapped_denoiser_is_found_below_its_path(tiny_dit) -> None:
    wrapper = nn.Module()
    wrapper.model = tiny_dit()
    assert list(discover(wrapper)) == [f"model.{name}" for name in discover(wrapper.model)]


def test_a_weight_that_two_layers_share_is_one_target(tiny_dit) -> None:
    denoiser = tiny_dit()
    first, second, _ = denoiser.transformer_blocks
    second.attn1.to_k.weight = first.attn1.to_k.weight
    targets = discover(denoiser)
    assert "transformer_blocks.0.attn1.to_k" in targets
    assert "transformer_blocks.1.attn1.to_k" not in targets


@pytest.mark.parametrize(
    "denoiser",
    [
        nn.Linear(4, 4),
        nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)),
        nn.ModuleList([nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)) for _ in range(3)]),
    ],
)
def test_a_module_without_transformer_blocks_is_refused(denoiser: nn.Module) -> None:
    with pytest.raises(ModelError, match=f"{type(denoiser).__name__}: no transformer blocks found"):
        discover(denoiser)


def attention_blocks(*layers: nn.Module) -> nn.ModuleList:
    """One block of query and key projections with more layers, named by their position."""
    block = nn.Module()
    block.to_q, block.to_k = nn.Linear(8, 8), nn.Linear(8, 8)
    for i, layer in enumerate(layers):
        block.add_module(f"layer{i}", layer)
    return nn.ModuleList([block])


def stored(layer: nn.Module, weight: torch.Tensor) -> nn.Module:
    """The layer with its weight kept in another form."""
    layer.weight = nn.Parameter(weight, requires_grad=False)
    return layer


@pytest.mark.parametrize(
    ("layer", "is_target"),
    [
        (nn.Conv1d(8, 6, 1), True),
        (nn.Conv2d(8, 6, (1, 1), bias=False), True),
        (nn.Conv3d(8, 6, 1, padding="same"), True),
        (nn.Conv2d(8, 6, 3, padding=1), False),
        (nn.Conv2d(8, 6, (1, 3)), False),
        (nn.Conv2d(8, 8, 1, groups=8), False),
        (nn.Conv2d(8, 6, 1, stride=2), False),
        (nn.Conv2d(8, 6, 1, padding=1), False),
        (nn.ConvTranspose2d(8, 6, 1), False),
        (nn.Conv2d(64, 4, 1), False),  # one output for each head
        (nn.utils.parametrizations.weight_norm(nn.Linear(8, 6)), False),
        (stored(nn.Linear(8, 6), torch.zeros(6, 8, dtype=torch.int8)), False),  # quantised
        (stored(nn.Linear(8, 6), torch.zeros(24, 1)), False),  # packed
        (nn.Embedding(8, 6), False),
    ],
    ids=repr,
)
def test_a_layer_is_a_target_where_its_weight_is_one_matrix(layer, is_target: bool) -> None:
    targets = discover(attention_blocks(layer))
    assert ("0.layer0" in targets) == is_target
    if is_target:
        kind = "linear" if isinstance(layer, nn.Linear) else "convolution"
        assert (targets["0.layer0"].kind, targets["0.layer0"].shape) == (kind, (6, 8))


def test_a_multihead_attention_of_torch_is_no_target_and_its_neighbours_are() -> None:
    denoiser = nn.ModuleList([nn.TransformerEncoderLayer(8, 2, 16) for _ in range(2)])
    assert list(discover(denoiser)) == ["0.linear1", "0.linear2", "1.linear1", "1.linear2"]


def test_an_auxiliary_list_of_the_class_of_the_trunk_stays_outside_it() -> None:
    """Its items are no lone blocks: they stand in a list."""
    denoiser, refiner = nn.Module(), nn.Module()
    denoiser.blocks = nn.ModuleList(attention_blocks(nn.Linear(8, 8))[0] for _ in range(3))
    refiner.blocks = attention_blocks()
    denoiser.refiner = refiner
    assert {name.split(".")[0] for name in discover(denoiser)} == {"blocks"}
    added = {n: t for n, t in discover(denoiser, auxiliary=True).items() if t.auxiliary}
    assert list(added) == ["refiner.blocks.0.to_q", "refiner.blocks.0.to_k"]


class _NarrowAttention(nn.Module):
    """Multi-query attention: one narrow head of keys and values."""

    def __init__(self) -> None:
        super().__init__()
        self.to_q = nn.Linear(256, 256)
        self.to_k, self.to_v = nn.Linear(256, 16), nn.Linear(256, 16)
        self.to_gate = nn.Linear(256, 16)


def test_narrow_keys_and_values_are_targets_and_a_gate_per_head_is_not() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attn = _NarrowAttention()

    class Denoiser(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList(Block() for _ in range(2))

    leaves = {name.rsplit(".", 1)[-1] for name in discover(Denoiser())}
    assert leaves == {"to_q", "to_k", "to_v"}
