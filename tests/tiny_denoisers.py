"""Tiny configurations of the transformer denoisers that diffusers exports, each with a real call.

For every class: constructor arguments for a model of a few blocks, the targets expected in each
block (counted by eye in the class, never by `discover`), the targets that the call cannot reach or
runs in vain, and a function that draws the keyword arguments of one forward call.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

Blocks = Mapping[str, tuple[int, ...] | int]


class Draw:
    """Inputs of one call; the same seed gives the same bits."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator)

    def uniform(self, *shape: int) -> Tensor:
        return torch.rand(shape, generator=self.generator)

    def integers(self, high: int, *shape: int) -> Tensor:
        return torch.randint(0, high, shape, generator=self.generator)


Call = Callable[[Draw], dict[str, Any]]


@dataclass(frozen=True)
class Family:
    """One class in a tiny configuration.

    Args:
        name: the class in diffusers.
        blocks: targets in each block; a tuple for the blocks of a list, a number for one block
            that stands outside any list.
        uncalled: globs of the targets that the call leaves out.
        unused: targets that the call runs and whose output nothing takes up.
        auxiliary: targets in each block outside the trunk, as `blocks`.
        config: constructor arguments.
        call: draws the keyword arguments of a forward call.
    """

    name: str
    blocks: Blocks
    uncalled: tuple[str, ...]
    unused: tuple[str, ...]
    auxiliary: Blocks
    config: dict[str, Any]
    call: Call

    @property
    def expected(self) -> dict[str, int]:
        """Targets by the path of their block."""
        return by_block(self.blocks)

    @property
    def expected_auxiliary(self) -> dict[str, int]:
        """Targets outside the trunk by the path of their block."""
        return by_block(self.auxiliary)

    def make(self, seed: int = 0) -> nn.Module:
        """The denoiser in eval mode, every parameter drawn anew."""
        import diffusers

        return redraw_(getattr(diffusers, self.name)(**self.config), seed)


def by_block(blocks: Blocks) -> dict[str, int]:
    counts: dict[str, int] = {}
    for path, numbers in blocks.items():
        if isinstance(numbers, int):
            counts[path] = numbers
        else:
            counts |= {f"{path}.{i}": number for i, number in enumerate(numbers)}
    return counts


FAMILIES: dict[str, Family] = {}
WRITTEN_FOR = "0.42.1"  # of diffusers: it exports every class of the table

# Attention in these has no gradients on a CPU.
WITHOUT_GRADIENTS = {
    "AnyFlowFARTransformer3DModel", "LTX2VideoDiffusionDecoderModel",
    "Kandinsky6SRTransformer3DModel",
}  # fmt: skip

# Exported classes of such a name, or of diffusers.models.transformers, are in FAMILIES or here.
NAMED_LIKE_A_DENOISER = re.compile(r"Transformer|DiT|UVi[tT]|Prior|Diffusion|Denois")
LEFT_OUT = {
    "HunyuanDiT2DControlNetModel": "a ControlNet",
    "HunyuanDiT2DMultiControlNetModel": "several ControlNets",
    "LongCatAudioDiTVae": "an autoencoder",
    "MiniMaxMusic3RVQDepthDecoder": "autoregressive: the next audio code, no noise to remove",
}


def exported(names: Iterable[str]) -> list[str]:
    """Those that the installed diffusers has; one older than the table lacks the last families."""
    import diffusers

    return [name for name in names if name in dir(diffusers)]


def family(
    name: str,
    blocks: Blocks,
    /,
    uncalled: tuple[str, ...] = (),
    unused: tuple[str, ...] = (),
    auxiliary: Blocks = MappingProxyType({}),
    **config: Any,
) -> Callable[[Call], Call]:
    """Puts a class into the table, with the decorated function as its call."""

    def add(call: Call) -> Call:
        assert name not in FAMILIES
        FAMILIES[name] = Family(name, blocks, uncalled, unused, auxiliary, config, call)
        return call

    return add


@torch.no_grad()
def redraw_(denoiser: nn.Module, seed: int) -> nn.Module:
    """Every parameter from a seeded normal, those that a constructor sets to zero or one too."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in denoiser.parameters():
        fan_in = parameter.shape[1:].numel() if parameter.ndim > 1 else 100
        parameter.copy_(max(1, fan_in) ** -0.5 * torch.randn(parameter.shape, generator=generator))
    return denoiser.eval()


# --- Images: modulation or cross-attention by the text ---


@family(
    "DiTTransformer2DModel",
    {"transformer_blocks": (7, 7)},
    num_attention_heads=2, attention_head_dim=16, num_layers=2, in_channels=4, out_channels=8,
    sample_size=8, num_embeds_ada_norm=10, norm_num_groups=2,
)  # fmt: skip
def _dit(draw: Draw) -> dict[str, Any]:
    return {
        "hidden_states": draw.normal(2, 4, 8, 8),
        "timestep": draw.integers(1000, 2),
        "class_labels": draw.integers(10, 2),
    }


@family(
    "PixArtTransformer2DModel",
    {"transformer_blocks": (10, 10)},
    num_attention_heads=2, attention_head_dim=16, num_layers=2, cross_attention_dim=32,
    caption_channels=12, sample_size=8, norm_num_groups=2, use_additional_conditions=False,
)  # fmt: skip
def _pixart(draw: Draw) -> dict[str, Any]:
    return {
        "hidden_states": draw.normal(2, 4, 8, 8),
        "encoder_hidden_states": draw.normal(2, 6, 12),
        "encoder_attention_mask": torch.tensor([[1] * 6, [1] * 3 + [0] * 3]),
        "timestep": draw.integers(1000, 2),
        "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
    }


@family(
    "SanaTransformer2DModel",
    {"transformer_blocks": (10, 10)},  # two are pointwise convolutions of the feed-forward
    in_channels=4, out_channels=4, num_layers=2, num_attention_heads=2, attention_head_dim=16,
    num_cross_attention_heads=2, cross_attention_head_dim=16, cross_attention_dim=32,
    caption_channels=12, sample_size=8,
)  # fmt: skip
def _sana(draw: Draw) -> dict[str, Any]:
    return {
        "hidden_states": draw.normal(2, 4, 8, 8),
        "encoder_hidden_states": draw.normal(2, 6, 12),
        "timestep": draw.integers(1000, 2),
    }


@family(
    "HunyuanDiT2DModel",
    {"blocks": (11, 11, 11, 12)},  # a skip_linear in the second half but its first
    num_attention_heads=2, attention_head_dim=16, in_channels=4, patch_size=2, sample_size=8,
    hidden_size=32, num_layers=4, cross_attention_dim=12, cross_attention_dim_t5=16,
    pooled_projection_dim=16, text_len=5, text_len_t5=7,
)  # fmt: skip
def _hunyuan_dit(draw: Draw) -> dict[str, Any]:
    return {
        "hidden_states": draw.normal(2, 4, 8, 8),
        "timestep": 1000 * draw.uniform(2),
        "encoder_hidden_states": draw.normal(2, 5, 12),
        "text_embedding_mask": torch.ones(2, 5),
        "encoder_hidden_states_t5": draw.normal(2, 7, 16),
        "text_embedding_mask_t5": torch.ones(2, 7),
        "image_meta_size": 1000 * draw.uniform(2, 6),
        "style": torch.zeros(2, dtype=torch.long),
        "image_rotary_emb": tuple(draw.normal(2, 16, 16).unbind()),
    }


@family(
    "LuminaNextDiT2DModel",
    {"layers": (11, 11)},
    sample_size=8, patch_size=2, in_channels=4, hidden_size=32, num_layers=2,
    num_attention_heads=2, num_kv_heads=1, multiple_of=16, cross_attention_dim=12,
)  # fmt: skip
def _lumina_next(draw: Draw) -> dict[str, Any]:
    return {
        "hidden_states": draw.normal(2, 4, 8, 8),
        "timestep": draw.uniform(2),
        "encoder_hidden_states": draw.normal(2, 6, 12),
        "encoder_mask": torch.ones(2, 6),
        "image_rotary_emb": torch.polar(torch.ones(384, 384, 8), draw.normal(384, 384, 8)),
        "cross_attention_kwargs": {},
    }


@family(
    "Lumina2Transformer2DModel",
    {"noise_refiner": (8,), "context_refiner": (7,), "layers": (8, 8)},
    sample_size=8, in_channels=4, hidden_size=32, num_layers=2, num_refiner_layers=1,
    num_attention_heads=2, num_kv_heads=1, multiple_of=16, axes_dim_rope=(4, 6, 6),
    axes_lens=(16, 16, 16), cap_feat_dim=12,
)  # fmt: skip
def _lumina2(draw: Draw) -> dict[str, Any]:
    return {
        "hidden_states": draw.normal(2, 4, 8, 8),
        "timestep": draw.uniform(2),
        "encoder_hidden_states": draw.normal(2, 6, 12),
        "encoder_attention_mask": torch.tensor([[1] * 6, [1] * 4 + [0] * 2], dtype=torch.bool),
    }


@family(
    "ZImageTransformer2DModel",
    {"noise_refiner": (8,), "context_refiner": (7,), "layers": (8, 8)},
    in_channels=4, dim=32, n_layers=2, n_refiner_layers=1, n_heads=2, n_kv_heads=2,
    cap_feat_dim=12, axes_dims=[4, 6, 6], axes_lens=[64, 16, 16],
)  # fmt: skip
def _z_image(draw: Draw) -> dict[str, Any]:
    return {
        "x": list(draw.normal(2, 4, 1, 8, 8)),
        "t": draw.uniform(2),
        "cap_feats": [draw.normal(6, 12), draw.normal(9, 12)],
    }


@family(
    "BriaFibo2Transformer2DModel",
    {"noise_refiner": (8,), "layers": (8, 12, 8)},  # cross-attention in the second
    auxiliary={"perceiver.layers": (11,)},
    in_channels=4, dim=32, n_layers=3, n_refiner_layers=1, n_heads=2, cap_feat_dim=12,
    injection_layer_ids=(1,), perceiver_num_layers=1, min_num_gist_tokens=4,
    max_num_gist_tokens=8, gist_step=2, gist_min_text_len=4, gist_max_text_len=16,
    axes_dims=(4, 6, 6), axes_lens=(16, 8, 8),
)  # fmt: skip
def _bria_fibo2(draw: Draw) -> dict[str, Any]:
    return {
        "hidden_states": draw.normal(2, 4, 8, 8),
        "timestep": draw.uniform(2),
        "encoder_hidden_states": draw.normal(2, 2, 6, 12),
    }


@family(
    "PRXTransformer2DModel",
    {"blocks": (7, 7)},
    in_channels=4, context_in_dim=12, hidden_size=32, mlp_ratio=2, num_heads=2, depth=2,
    axes_dim=[8, 8],
)  # fmt: skip
def _prx(draw: Draw) -> dict[str, Any]:
    return {
        "hidden_states": draw.normal(2, 4, 8, 8),
        "timestep": draw.uniform(2),
        "encoder_hidden_states": draw.normal(2, 6, 12),
    }


@family(
    "Transformer2DModel",
    {"transformer_blocks": (10, 10)},
    num_attention_heads=2, attention_head_dim=16, in_channels=8, num_layers=2,
    norm_num_groups=2, cross_attention_dim=12,
)  # fmt: skip
@family(
    "DreamLiteTransformer2DModel",
    {"transformer_blocks": (10, 10)},
    num_attention_heads=2, attention_head_dim=16, in_channels=8, num_layers=2,
    norm_num_groups=2, cross_attention_dim=12,
)  # fmt: skip
def _transformer_2d(draw: Draw) -> dict[str, Any]:
    return {
        "hidden_states": draw.normal(2, 8, 4, 4),
        "encoder_hidden_states": draw.normal(2, 6, 12),
    }


@family(
    "UVit2DModel",
    {"transformer_layers": (13, 13)},
    auxiliary={"down_block.attention_blocks": (8,), "up_block.attention_blocks": (8,)},
    hidden_size=32, cond_embed_dim=16, micro_cond_encode_dim=4, micro_cond_embed_dim=20,
    encoder_hidden_size=32, vocab_size=20, codebook_size=16, in_channels=32,
    block_out_channels=32, num_res_blocks=1, block_num_heads=2, num_hidden_layers=2,
    num_attention_heads=2, intermediate_size=48, sample_size=8,
)  # fmt: skip
def _uvit(draw: Draw) -> dict[str, Any]:
    return {
        "input_ids": draw.integers(20, 2, 8, 8),
        "encoder_hidden_states": draw.normal(2, 6, 32),
        "pooled_text_emb": draw.normal(2, 16),
        "micro_conds": draw.normal(2, 5),
    }


@family(
    "UNet2DConditionModel",  # its transformers lie in several lists of different owners
    {
        "down_blocks.0.attentions": (12, 12),
        "up_blocks.1.attentions": (12, 12, 12),
        "mid_block.attentions": (12,),
    },
    in_channels=4, out_channels=4, block_out_channels=(8, 16), norm_num_groups=2,
    down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
    up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"), cross_attention_dim=12,
    attention_head_dim=2, use_linear_projection=True,
)  # fmt: skip
def _unet(draw: Draw) -> dict[str, Any]:
    return {
        "sample": draw.normal(2, 4, 8, 8),
        "timestep": draw.integers(1000, 2),
        "encoder_hidden_states": draw.normal(2, 6, 12),
    }


# --- Images: text and image tokens in one attention ---


@family(
    "SD3Transformer2DModel",
    {"transformer_blocks": (18, 14, 11)},  # attn2 in the first, no text output in the last
    sample_size=8, in_channels=4, out_channels=4, num_layers=3, attention_head_dim=16,
    num_attention_heads=2, joint_attention_dim=12, caption_projection_dim=32,
    pooled_projection_dim=16, pos_embed_max_size=8, dual_attention_layers=(0,), qk_norm="rms_norm",
)  # fmt: skip
def _sd3(draw: Draw) -> dict[str, Any]:
    return {
        "hidden_states": draw.normal(2, 4, 8, 8),
        "encoder_hidden_states": draw.normal(2, 6, 12),
        "pooled_projections": draw.normal(2, 16),
        "timestep": 1000 * draw.uniform(2),
    }


@family(
    "AuraFlowTransformer2DModel",
    {"joint_transformer_blocks": (16, 16), "single_transformer_blocks": (8, 8)},
    sample_size=8, num_mmdit_layers=2, num_single_dit_layers=2, attention_head_dim=16,
    num_attention_heads=2, joint_attention_dim=12, caption_projection_dim=32,
    pos_embed_max_size=16,
)  # fmt: skip
def _aura_flow(draw: Draw) -> dict[str, Any]:
    return {
        "hidden_states": draw.normal(2, 4, 8, 8),
        "encoder_hidden_states": draw.normal(2, 6, 12),
        "timestep": draw.uniform(2),
    }


FLUX_BLOCKS = {"transformer_blocks": (14, 14), "single_transformer_blocks": (6, 6)}
FLUX_CONFIG: dict[str, Any] = {
    "in_channels": 4, "num_layers": 2, "num_single_layers": 2, "attention_head_dim": 16,
    "num_attention_heads": 2, "joint_attention_dim": 12, "axes_dims_rope": (4, 6, 6),
}  # fmt: skip


def flux_tokens(draw: Draw) -> dict[str, Any]:
    """Sixteen image tokens and six text tokens with their places."""
    grid = torch.cartesian_prod(torch.zeros(1), torch.arange(4.0), torch.arange(4.0))
    return {
        "hidden_states": draw.normal(2, 16, 4),
        "encoder_hidden_states": draw.normal(2, 6, 12),
        "timestep": draw.uniform(2),
        "img_ids": grid,
        "txt_ids": torch.zeros(6, 3),
    }


@family(
    "FluxTransformer2DModel", FLUX_BLOCKS, **FLUX_CONFIG, pooled_projection_dim=16,
    guidance_embeds=True,
)  # fmt: skip
def _flux(draw: Draw) -> dict[str, Any]:
    pooled = {"pooled_projections": draw.normal(2, 16), "guidance": torch.full((2,), 3.5)}
    return flux_tokens(draw) | pooled


@family("BriaTransformer2DModel", FLUX_BLOCKS, **FLUX_CONFIG)
@family(
    "ChromaTransformer2DModel",
    {"transformer_blocks": (12, 12), "single_transformer_blocks": (5, 5)},
    **FLUX_CONFIG, approximator_num_channels=16, approximator_hidden_dim=24,
    approximator_layers=2,
)  # fmt: skip
@family("LongCatImageTransformer2DModel", FLUX_BLOCKS, **FLUX_CONFIG, pooled_projection_dim=12)
@family(
    "OvisImageTransformer2DModel",
    {"transformer_blocks": (14, 14), "single_transformer_blocks": (6, 6)},
    **FLUX_CONFIG,
)  # fmt: skip
def _like_flux(draw: Draw) -> dict[str, Any]:
    return flux_tokens(draw)


@family(
    "BriaFiboTransformer2DModel", FLUX_BLOCKS, **FLUX_CONFIG, text_encoder_dim=8,
)  # fmt: skip
def _bria_fibo(draw: Draw) -> dict[str, Any]:
    return flux_tokens(draw) | {"text_encoder_layers": list(draw.normal(4, 2, 6, 8))}


FLUX2_CONFIG: dict[str, Any] = {
    "in_channels": 4, "num_layers": 2, "num_single_layers": 2, "attention_head_dim": 16,
    "num_attention_heads": 2, "joint_attention_dim": 12, "axes_dims_rope": (4, 4, 4, 4),
}  # fmt: skip


def flux2_tokens(draw: Draw) -> dict[str, Any]:
    tokens = flux_tokens(draw)
    ids = {name: torch.nn.functional.pad(tokens[name], (0, 1)) for name in ("img_ids", "txt_ids")}
    return tokens | ids


@family(
    "Flux2Transformer2DModel",
    {"transformer_blocks": (12, 12), "single_transformer_blocks": (2, 2)},
    **FLUX2_CONFIG, timestep_guidance_channels=16,
)  # fmt: skip
def _flux2(draw: Draw) -> dict[str, Any]:
    return flux2_tokens(draw) | {"guidance": torch.full((2,), 3.5)}


@family(
    "Flux3Transformer2DModel",
    {
        "mode_blocks.image": (6, 6),
        "mode_blocks.image_cond": (6, 6),
        "txt_mode_blocks": (6, 6),
        "single_transformer_blocks": (6, 6),
    },
    uncalled=("mode_blocks.image_cond.*",),  # no image to edit
    **FLUX2_CONFIG, cond_in_channels=4, timestep_channels=16,
)  # fmt: skip
def _flux3(draw: Draw) -> dict[str, Any]:
    return flux2_tokens(draw)


@family(
    "QwenImageTransformer2DModel",
    {"transformer_blocks": (14, 14)},
    unused=(  # the text after the last block
        "transformer_blocks.1.attn.to_add_out",
        "transformer_blocks.1.txt_mlp.net.0.proj",
        "transformer_blocks.1.txt_mlp.net.2",
    ),
    in_channels=16, out_channels=4, num_layers=2, attention_head_dim=16, num_attention_heads=2,
    joint_attention_dim=12, axes_dims_rope=(4, 6, 6),
)  # fmt: skip
def _qwen_image(draw: Draw) -> dict[str, Any]:
    return {
        "hidden_states": draw.normal(2, 16, 16),
        "encoder_hidden_states": draw.normal(2, 6, 12),
        "encoder_hidden_states_mask": torch.ones(2, 6, dtype=torch.long),
        "timestep": draw.uniform(2),
        "img_shapes": [[(1, 4, 4)], [(1, 4, 4)]],
    }


@family(
    "QwenImage21Transformer2DModel",
    {"transformer_blocks": (7, 7)},
    in_channels=4, out_channels=4, num_layers=2, attention_head_dim=16, num_attention_heads=2,
    context_in_dim=12, axes_dims_rope=(4, 6, 6),
)  # fmt: skip
def _qwen_image21(draw: Draw) -> dict[str, Any]:
    return {
        "hidden_states": draw.normal(2, 16, 4),
        "encoder_hidden_states": draw.normal(2, 6, 12),
        "timestep": draw.uniform(2),
        "img_shapes": [[(1, 4, 4)], [(1, 4, 4)]],
        "img_mask": torch.tensor([False] * 6 + [True] * 4).expand(2, -1),
    }


@family(
    "CogView3PlusTransformer2DModel",
    {"transformer_blocks": (7, 7)},
    in_channels=4, out_channels=4, num_layers=2, num_attention_heads=2, attention_head_dim=16,
    text_embed_dim=12, time_embed_dim=16, condition_dim=8, pos_embed_max_size=8, sample_size=8,
)  # fmt: skip
@family(
    "CogView4Transformer2DModel",
    {"transformer_blocks": (7, 7)},
    in_channels=4, out_channels=4, num_layers=2, num_attention_heads=2, attention_head_dim=16,
    text_embed_dim=12, time_embed_dim=16, condition_dim=8, pos_embed_max_size=8, sample_size=8,
    rope_axes_dim=(8, 8),
)  # fmt: skip
def _cogview(draw: Draw) -> dict[str, Any]:
    return {
        "hidden_states": draw.normal(2, 4, 8, 8),
        "encoder_hidden_states": draw.normal(2, 6, 12),
        "timestep": draw.integers(1000, 2),
        "original_size": torch.full((2, 2), 64.0),
        "target_size": torch.full((2, 2), 64.0),
        "crop_coords": torch.zeros(2, 2),
    }


@family(
    "GlmImageTransformer2DModel",
    {"transformer_blocks": (7, 7)},
    in_channels=4, out_channels=4, num_layers=2, attention_head_dim=16, num_attention_heads=2,
    text_embed_dim=12, time_embed_dim=16, condition_dim=8, prior_vq_quantizer_codebook_size=16,
)  # fmt: skip
def _glm_image(draw: Draw) -> dict[str, Any]:
    return {
        "hidden_states": draw.normal(2, 4, 8, 8),
        "encoder_hidden_states": draw.normal(2, 6, 12),
        "prior_token_id": draw.integers(16, 2, 16),
        "prior_token_drop": torch.zeros(2, 16, dtype=torch.bool),
        "timestep": draw.integers(1000, 2),
        "target_size": torch.full((2, 2), 64.0),
        "crop_coords": torch.zeros(2, 2),
    }


@family(
    "HiDreamImageTransformer2DModel",
    # a shared and four routed experts for the image, one for the text
    {"double_stream_blocks": (27, 27), "single_stream_blocks": (20, 20)},
    patch_size=2, in_channels=4, out_channels=4, num_layers=2, num_single_layers=2,
    attention_head_dim=16, num_attention_heads=2, caption_channels=[12, 20], text_emb_dim=16,
    axes_dims_rope=(4, 6, 6), max_resolution=(8, 8), llama_layers=[0, 1, 2, 3],
)  # fmt: skip
def _hidream(draw: Draw) -> dict[str, Any]:
    return {
        "hidden_states": draw.normal(2, 4, 8, 8),
        "timesteps": draw.integers(1000, 2),
        "encoder_hidden_states_t5": draw.normal(2, 5, 12),
        "encoder_hidden_states_llama3": draw.normal(4, 2, 6, 20),
        "pooled_embeds": draw.normal(2, 16),
    }


@family(
    "HunyuanImageTransformer2DModel",
    {"transformer_blocks": (14, 14), "single_transformer_blocks": (6, 6)},
    auxiliary={"context_embedder.token_refiner.refiner_blocks": (7,)},
    in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=16, num_layers=2,
    num_single_layers=2, num_refiner_layers=1, text_embed_dim=12, rope_axes_dim=(8, 8),
)  # fmt: skip
def _hunyuan_image(draw: Draw) -> dict[str, Any]:
    return {
        "hidden_states": draw.normal(2, 4, 4, 4),
        "timestep": 1000 * draw.uniform(2),
        "encoder_hidden_states": draw.normal(2, 6, 12),
        "encoder_attention_mask": torch.tensor([[1] * 6, [1] * 4 + [0] * 2]),
    }


@family(
    "NucleusMoEImageTransformer2DModel",
    {"transformer_blocks": (10, 10, 10, 10, 10)},  # routed experts, in the fourth, are no Linears
    in_channels=16, out_channels=4, num_layers=5, attention_head_dim=16, num_attention_heads=4,
    joint_attention_dim=12, axes_dims_rope=(4, 6, 6), num_experts=4, moe_intermediate_dim=16,
    capacity_factors=2.0,
)  # fmt: skip
def _nucleus(draw: Draw) -> dict[str, Any]:
    return {
        "hidden_states": draw.normal(2, 16, 16),
        "img_shapes": [(1, 4, 4), (1, 4, 4)],
        "encoder_hidden_states": draw.normal(2, 6, 12),
        "timestep": draw.uniform(2),
    }


@family(
    "ErnieImageTransformer2DModel",
    {"layers": (7, 7)},
    hidden_size=32, num_attention_heads=2, num_layers=2, ffn_hidden_size=48, in_channels=4,
    out_channels=4, text_in_dim=12, rope_axes_dim=(4, 6, 6),
)  # fmt: skip
def _ernie_image(draw: Draw) -> dict[str, Any]:
    return {
        "hidden_states": draw.normal(2, 4, 4, 4),
        "timestep": draw.integers(1000, 2),
        "text_bth": draw.normal(2, 6, 12),
        "text_lens": torch.tensor([6, 4]),
    }


@family(
    "Ideogram4Transformer2DModel",
    {"layers": (8, 8)},
    in_channels=4, num_layers=2, attention_head_dim=16, num_attention_heads=2,
    intermediate_size=48, adaln_dim=8, llm_features_dim=12, mrope_section=(4, 2, 2),
)  # fmt: skip
def _ideogram4(draw: Draw) -> dict[str, Any]:
    return {
        "hidden_states": draw.normal(2, 22, 4),
        "timestep": draw.uniform(2),
        "encoder_hidden_states": draw.normal(2, 22, 12),
        "position_ids": torch.arange(22).view(1, 22, 1).expand(2, -1, 3),
        "segment_ids": torch.ones(2, 22, dtype=torch.long),
        "indicator": torch.tensor([3] * 6 + [2] * 16).expand(2, -1),
    }


@family(
    "Krea2Transformer2DModel",
    {"transformer_blocks": (8, 8)},
    auxiliary={"text_fusion.layerwise_blocks": (8,), "text_fusion.refiner_blocks": (8,)},
    in_channels=4, num_layers=2, attention_head_dim=16, num_attention_heads=4,
    num_key_value_heads=2, intermediate_size=96, timestep_embed_dim=16, text_hidden_dim=16,
    num_text_layers=3, text_num_attention_heads=2, text_num_key_value_heads=2,
    text_intermediate_size=16, num_layerwise_text_blocks=1, num_refiner_text_blocks=1,
    axes_dims_rope=(4, 6, 6),
)  # fmt: skip
def _krea2(draw: Draw) -> dict[str, Any]:
    return {
        "hidden_states": draw.normal(2, 16, 4),
        "encoder_hidden_states": draw.normal(2, 6, 3, 16),
        "timestep": draw.uniform(2),
        "position_ids": torch.arange(22.0).view(22, 1).expand(-1, 3),
    }


@family(
    "OmniGenTransformer2DModel",
    {"layers": (6, 6)},
    hidden_size=32, num_attention_heads=2, num_key_value_heads=2, intermediate_size=48,
    num_layers=2, pad_token_id=0, vocab_size=32, max_position_embeddings=64,
    original_max_position_embeddings=64, pos_embed_max_size=8, time_step_dim=16,
    rope_scaling={"short_factor": [1.0] * 8, "long_factor": [1.0] * 8},
)  # fmt: skip
def _omnigen(draw: Draw) -> dict[str, Any]:
    return {
        "hidden_states": draw.normal(2, 4, 8, 8),
        "timestep": draw.uniform(2),
        "input_ids": draw.integers(32, 2, 6),
        "input_img_latents": [],
        "input_image_sizes": {},
        "attention_mask": torch.ones(2, 23, 23),
        "position_ids": torch.arange(23).expand(2, -1),
    }


JOY_UNUSED = (  # the text after the last block
    "double_blocks.1.txt_mlp.net.0.proj",
    "double_blocks.1.txt_mlp.net.2",
    "double_blocks.1.attn.txt_attn_proj",
)
JOY_CONFIG: dict[str, Any] = {
    "in_channels": 4, "hidden_size": 32, "num_attention_heads": 2, "text_dim": 12,
    "num_layers": 2, "rope_dim_list": [4, 6, 6],
}  # fmt: skip


@family(
    "JoyImageEditTransformer3DModel",
    {"double_blocks": (8, 8)},
    unused=JOY_UNUSED,
    **JOY_CONFIG,
)
def _joy_image(draw: Draw) -> dict[str, Any]:
    return {
        "hidden_states": draw.normal(2, 4, 2, 8, 8),
        "timestep": draw.integers(1000, 2),
        "encoder_hidden_states": draw.normal(2, 6, 12),
    }


@family(
    "JoyImageEditPlusTransformer3DModel",
    {"double_blocks": (8, 8)},
    unused=JOY_UNUSED,
    **JOY_CONFIG,
)
def _joy_image_plus(draw: Draw) -> dict[str, Any]:
    return {
        "hidden_states": draw.normal(2, 32, 4, 1, 2, 2),
        "timestep": draw.integers(1000, 2),
        "encoder_hidden_states": draw.normal(2, 6, 12),
        "encoder_hidden_states_mask": torch.ones(2, 6),
        "shape_list": [[(1, 4, 4), (1, 4, 4)], [(1, 4, 4)]],
    }


# --- Video ---


@family(
    "WanTransformer3DModel",
    {"blocks": (10, 10)},
    num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=4, text_dim=12,
    freq_dim=16, ffn_dim=48, num_layers=2, rope_max_seq_len=16,
)  # fmt: skip
@family(
    "SkyReelsV2Transformer3DModel",
    {"blocks": (10, 10)},
    num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=4, text_dim=12,
    freq_dim=16, ffn_dim=48, num_layers=2, rope_max_seq_len=16,
)  # fmt: skip
def _wan(draw: Draw) -> dict[str, Any]:
    return {
        "hidden_states": draw.normal(2, 4, 3, 8, 8),
        "timestep": draw.integers(1000, 2),
        "encoder_hidden_states": draw.normal(2, 6, 12),
    }


@family(
    "WanVACETransformer3DModel",
    {"blocks": (10, 10), "vace_blocks": (12, 11)},  # the first also projects its input
    num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=4, text_dim=12,
    freq_dim=16, ffn_dim=48, num_layers=2, rope_max_seq_len=16, vace_layers=[0, 1],
    vace_in_channels=6,
)  # fmt: skip
def _wan_vace(draw: Draw) -> dict[str, Any]:
    return _wan(draw) | {"control_hidden_states": draw.normal(2, 6, 3, 8, 8)}


@family(
    "WanAnimateTransformer3DModel",
    {"blocks": (12, 12), "face_adapter": (4,)},
    num_attention_heads=2, attention_head_dim=16, in_channels=12, latent_channels=4,
    out_channels=4, text_dim=12, freq_dim=16, ffn_dim=48, num_layers=2, image_dim=20,
    added_kv_proj_dim=32, rope_max_seq_len=16, motion_encoder_channel_sizes={"4": 8, "8": 8},
    motion_encoder_size=8, motion_style_dim=8, motion_dim=4, motion_encoder_dim=8,
    face_encoder_hidden_dim=8, face_encoder_num_heads=2, inject_face_latents_blocks=2,
)  # fmt: skip
def _wan_animate(draw: Draw) -> dict[str, Any]:
    return {
        "hidden_states": draw.normal(1, 12, 3, 8, 8),
        "timestep": draw.integers(1000, 1),
        "encoder_hidden_states": draw.normal(1, 512, 12),
        "encoder_hidden_states_image": draw.normal(1, 257, 20),
        "pose_hidden_states": draw.normal(1, 4, 2, 8, 8),
        "face_pixel_values": draw.uniform(1, 3, 5, 8, 8),
    }


@family(
    "WanAnimate2Transformer3DModel",
    {"blocks": (12, 12)},
    text_len=8, in_dim=8, dim=32, ffn_dim=48, freq_dim=16, text_dim=12, out_dim=4, num_heads=2,
    num_layers=2,
)  # fmt: skip
def _wan_animate2(draw: Draw) -> dict[str, Any]:
    from diffusers.models.transformers.transformer_wan_animate_2 import WanAnimate2KVCache

    return {
        "hidden_states": [draw.normal(4, 2, 8, 8)],
        "condition_latents": [draw.normal(4, 2, 8, 8)],
        "timestep": 1000 * draw.uniform(1),
        "encoder_hidden_states": [draw.normal(6, 12)],
        "encoder_hidden_states_image": draw.normal(1, 5, 1280),
        "kv_cache": WanAnimate2KVCache(2),
        "kv_cache_mode": "extract",
        "seq_len": 32,
        "offset_grid_sizes": torch.tensor([[2, 4, 4]]),
    }


@family(
    "ChronoEditTransformer3DModel",
    {"blocks": (12, 12)},
    num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=4, text_dim=12,
    freq_dim=16, ffn_dim=48, num_layers=2, rope_max_seq_len=16, image_dim=20,
    added_kv_proj_dim=32,
)  # fmt: skip
def _chrono_edit(draw: Draw) -> dict[str, Any]:
    return {
        "hidden_states": draw.normal(2, 4, 2, 8, 8),
        "timestep": draw.integers(1000, 2),
        "encoder_hidden_states": draw.normal(2, 512, 12),
        "encoder_hidden_states_image": draw.normal(2, 257, 20),
    }


@family(
    "AnyFlowTransformer3DModel",
    {"blocks": (10, 10)},
    num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=4, text_dim=12,
    freq_dim=16, ffn_dim=48, num_layers=2, rope_max_seq_len=16,
)  # fmt: skip
def _any_flow(draw: Draw) -> dict[str, Any]:
    return {
        "hidden_states": draw.normal(2, 3, 4, 8, 8),
        "timestep": 1000 * draw.uniform(2, 3),
        "r_timestep": 1000 * draw.uniform(2, 3),
        "encoder_hidden_states": draw.normal(2, 6, 12),
    }


@family(
    "AnyFlowFARTransformer3DModel",
    {"blocks": (10, 10)},
    num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=4, text_dim=12,
    freq_dim=16, ffn_dim=48, num_layers=2, rope_max_seq_len=16, chunk_partition=(1, 2),
)  # fmt: skip
def _any_flow_far(draw: Draw) -> dict[str, Any]:
    return _any_flow(draw) | {"chunk_partition": [1, 2]}


@family(
    "HeliosTransformer3DModel",
    {"blocks": (10, 10)},
    num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=4, text_dim=12,
    freq_dim=16, ffn_dim=48, num_layers=2, rope_dim=(4, 6, 6),
)  # fmt: skip
def _helios(draw: Draw) -> dict[str, Any]:
    return {
        "hidden_states": draw.normal(2, 4, 2, 8, 8),
        "timestep": draw.integers(1000, 2),
        "encoder_hidden_states": draw.normal(2, 6, 12),
        "indices_hidden_states": torch.arange(1, 3).expand(2, -1),
        "indices_latents_history_short": torch.arange(1).expand(2, -1),
        "latents_history_short": draw.normal(2, 4, 1, 8, 8),
    }


@family(
    "CogVideoXTransformer3DModel",
    {"transformer_blocks": (8, 8)},
    num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=4,
    time_embed_dim=8, text_embed_dim=12, num_layers=2, sample_width=8, sample_height=8,
    sample_frames=9, max_text_seq_length=6,
)  # fmt: skip
def _cogvideox(draw: Draw) -> dict[str, Any]:
    return {
        "hidden_states": draw.normal(2, 3, 4, 8, 8),
        "encoder_hidden_states": draw.normal(2, 6, 12),
        "timestep": draw.integers(1000, 2),
    }


@family(
    "ConsisIDTransformer3DModel",
    {"transformer_blocks": (8, 8)},
    num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=4,
    time_embed_dim=8, text_embed_dim=12, num_layers=2, sample_width=8, sample_height=8,
    sample_frames=9, max_text_seq_length=6,
)  # fmt: skip
def _consisid(draw: Draw) -> dict[str, Any]:
    return _cogvideox(draw)


@family(
    "EasyAnimateTransformer3DModel",
    {"transformer_blocks": (14, 8)},  # text has weights of its own in the first only
    num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=4, patch_size=2,
    sample_width=8, sample_height=8, num_layers=2, mmdit_layers=1, time_embed_dim=8,
    text_embed_dim=12,
)  # fmt: skip
def _easy_animate(draw: Draw) -> dict[str, Any]:
    return {
        "hidden_states": draw.normal(2, 4, 2, 8, 8),
        "timestep": draw.integers(1000, 2),
        "encoder_hidden_states": draw.normal(2, 6, 12),
    }


@family(
    "HunyuanVideoTransformer3DModel",
    {"transformer_blocks": (14, 14), "single_transformer_blocks": (6, 6)},
    auxiliary={"context_embedder.token_refiner.refiner_blocks": (7,)},
    in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=16, num_layers=2,
    num_single_layers=2, num_refiner_layers=1, text_embed_dim=12, pooled_projection_dim=16,
    rope_axes_dim=(4, 6, 6),
)  # fmt: skip
def _hunyuan_video(draw: Draw) -> dict[str, Any]:
    return {
        "hidden_states": draw.normal(2, 4, 3, 8, 8),
        "timestep": draw.integers(1000, 2),
        "encoder_hidden_states": draw.normal(2, 6, 12),
        "encoder_attention_mask": torch.tensor([[1] * 6, [1] * 4 + [0] * 2]),
        "pooled_projections": draw.normal(2, 16),
        "guidance": torch.full((2,), 6000.0),
    }


@family(
    "HunyuanVideoFramepackTransformer3DModel",
    {"transformer_blocks": (14, 14), "single_transformer_blocks": (6, 6)},
    auxiliary={"context_embedder.token_refiner.refiner_blocks": (7,)},
    in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=16, num_layers=2,
    num_single_layers=2, num_refiner_layers=1, text_embed_dim=12, pooled_projection_dim=16,
    rope_axes_dim=(4, 6, 6), has_image_proj=True, image_proj_dim=20, has_clean_x_embedder=True,
)  # fmt: skip
def _framepack(draw: Draw) -> dict[str, Any]:
    return _hunyuan_video(draw) | {
        "image_embeds": draw.normal(2, 5, 20),
        "indices_latents": torch.arange(1, 4),
        "latents_clean": draw.normal(2, 4, 1, 8, 8),
        "indices_latents_clean": torch.arange(1),
        "latents_history_2x": draw.normal(2, 4, 2, 8, 8),
        "indices_latents_history_2x": torch.arange(2),
        "latents_history_4x": draw.normal(2, 4, 4, 8, 8),
        "indices_latents_history_4x": torch.arange(4),
    }


@family(
    "HunyuanVideo15Transformer3DModel",
    {"transformer_blocks": (14, 14)},
    auxiliary={"context_embedder.token_refiner.refiner_blocks": (7,)},
    unused=(  # the text after the last block
        "transformer_blocks.1.attn.to_add_out",
        "transformer_blocks.1.ff_context.net.0.proj",
        "transformer_blocks.1.ff_context.net.2",
    ),
    in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=16, num_layers=2,
    num_refiner_layers=1, text_embed_dim=12, text_embed_2_dim=8, image_embed_dim=20,
    rope_axes_dim=(4, 6, 6),
)  # fmt: skip
def _hunyuan_video15(draw: Draw) -> dict[str, Any]:
    return {
        "hidden_states": draw.normal(2, 4, 2, 4, 4),
        "timestep": 1000 * draw.uniform(2),
        "encoder_hidden_states": draw.normal(2, 6, 12),
        "encoder_attention_mask": torch.tensor([[1] * 6, [1] * 4 + [0] * 2]),
        "encoder_hidden_states_2": draw.normal(2, 3, 8),
        "encoder_attention_mask_2": torch.ones(2, 3, dtype=torch.long),
        "image_embeds": draw.normal(2, 5, 20),
    }


@family(
    "MotifVideoTransformer3DModel",
    {"transformer_blocks": (14, 14), "single_transformer_blocks": (6, 6)},
    in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=16, num_layers=2,
    num_single_layers=2, text_embed_dim=12, rope_axes_dim=(4, 6, 6),
)  # fmt: skip
def _motif_video(draw: Draw) -> dict[str, Any]:
    return {
        "hidden_states": draw.normal(2, 4, 2, 8, 8),
        "timestep": draw.integers(1000, 2),
        "encoder_hidden_states": draw.normal(2, 6, 12),
    }


@family(
    "MochiTransformer3DModel",
    {"transformer_blocks": (14, 11)},  # no text output in the last
    num_attention_heads=2, attention_head_dim=16, num_layers=2, pooled_projection_dim=16,
    in_channels=4, text_embed_dim=16, time_embed_dim=8, max_sequence_length=6,
)  # fmt: skip
def _mochi(draw: Draw) -> dict[str, Any]:
    return {
        "hidden_states": draw.normal(2, 4, 2, 8, 8),
        "encoder_hidden_states": draw.normal(2, 6, 16),
        "timestep": draw.integers(1000, 2),
        "encoder_attention_mask": torch.tensor([[1] * 6, [1] * 4 + [0] * 2], dtype=torch.bool),
    }


@family(
    "AllegroTransformer3DModel",
    {"transformer_blocks": (10, 10)},
    num_attention_heads=2, attention_head_dim=12, num_layers=2, cross_attention_dim=24,
    sample_height=8, sample_width=8, sample_frames=4, caption_channels=12,
)  # fmt: skip
def _allegro(draw: Draw) -> dict[str, Any]:
    return {
        "hidden_states": draw.normal(2, 4, 4, 8, 8),
        "encoder_hidden_states": draw.normal(2, 6, 12),
        "timestep": draw.integers(1000, 2),
    }


@family(
    "LatteTransformer3DModel",
    {"transformer_blocks": (10, 10), "temporal_transformer_blocks": (6, 6)},
    num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=4, num_layers=2,
    cross_attention_dim=32, attention_bias=True, sample_size=8, patch_size=2,
    activation_fn="gelu-approximate", num_embeds_ada_norm=1000, norm_type="ada_norm_single",
    norm_elementwise_affine=False, caption_channels=12, video_length=3,
)  # fmt: skip
def _latte(draw: Draw) -> dict[str, Any]:
    return {
        "hidden_states": draw.normal(2, 4, 3, 8, 8),
        "timestep": draw.integers(1000, 2),
        "encoder_hidden_states": draw.normal(2, 6, 12),
    }


@family(
    "TransformerTemporalModel",
    {"transformer_blocks": (10, 10)},
    num_attention_heads=2, attention_head_dim=16, in_channels=8, num_layers=2, norm_num_groups=2,
)  # fmt: skip
def _transformer_temporal(draw: Draw) -> dict[str, Any]:
    return {"hidden_states": draw.normal(6, 8, 4, 4), "num_frames": 3}


@family(
    "LTXVideoTransformer3DModel",
    {"transformer_blocks": (10, 10)},
    in_channels=8, out_channels=8, num_attention_heads=2, attention_head_dim=16,
    cross_attention_dim=32, num_layers=2, caption_channels=12,
)  # fmt: skip
def _ltx(draw: Draw) -> dict[str, Any]:
    return {
        "hidden_states": draw.normal(2, 2 * 4 * 4, 8),
        "encoder_hidden_states": draw.normal(2, 6, 12),
        "timestep": draw.integers(1000, 2),
        "encoder_attention_mask": torch.ones(2, 6, dtype=torch.bool),
        "num_frames": 2, "height": 4, "width": 4,
    }  # fmt: skip


LTX2_CONFIG: dict[str, Any] = {
    "in_channels": 4, "out_channels": 4, "num_attention_heads": 2, "attention_head_dim": 16,
    "cross_attention_dim": 32, "audio_in_channels": 4, "audio_out_channels": 4,
    "audio_num_attention_heads": 2, "audio_attention_head_dim": 8,
    "audio_cross_attention_dim": 16, "num_layers": 2, "caption_channels": 12,
}  # fmt: skip


@family("LTX2VideoTransformer3DModel", {"transformer_blocks": (28, 28)}, **LTX2_CONFIG)
def _ltx2(draw: Draw) -> dict[str, Any]:
    return {
        "hidden_states": draw.normal(2, 2 * 4 * 4, 4),
        "audio_hidden_states": draw.normal(2, 5, 4),
        "encoder_hidden_states": draw.normal(2, 6, 12),
        "audio_encoder_hidden_states": draw.normal(2, 6, 12),
        "timestep": 1000 * draw.uniform(2),
        "num_frames": 2, "height": 4, "width": 4, "audio_num_frames": 5,
    }  # fmt: skip


@family(
    "LTX2VideoDiffusionDecoderModel",
    {"decoder.det_stages.0": (7, 7), "decoder.diff_blocks": (8, 8)},
    latent_channels=4, patch_size=2, decoder_head_dim=16, decoder_stage_channels=(32, 32),
    decoder_stage_depths=(2, 2), decoder_stage_kernels=((3, 3, 3),),
    decoder_upsample_strides=((1, 2, 2),), decoder_upsample_channel_reductions=(1,),
    decoder_stage5_kernel=(3, 3, 3), decoder_t_emb_dim=16, spatial_compression_ratio=4,
    temporal_compression_ratio=1,
)  # fmt: skip
def _ltx2_decoder(draw: Draw) -> dict[str, Any]:
    return {"z": draw.normal(1, 4, 3, 4, 4), "generator": draw.generator}


@family(
    "SanaWMLTX2RefinerTransformer3DModel",
    {"transformer_blocks": (28, 28)},
    # video only
    uncalled=("*.audio_*", "*.audio_to_video_attn.*", "*.video_to_audio_attn.*"),
    **LTX2_CONFIG,
)  # fmt: skip
def _sana_wm_refiner(draw: Draw) -> dict[str, Any]:
    return {
        "hidden_states": draw.normal(2, 2 * 4 * 4, 4),
        "encoder_hidden_states": draw.normal(2, 6, 12),
        "timestep": 1000 * draw.uniform(2),
        "video_rotary_emb": tuple(draw.normal(2, 2, 32, 32).unbind()),
    }


@family(
    "SanaVideoTransformer3DModel",
    {"transformer_blocks": (10, 10)},  # two are pointwise convolutions of the feed-forward
    in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=16, num_layers=2,
    num_cross_attention_heads=2, cross_attention_head_dim=16, cross_attention_dim=32,
    caption_channels=12, sample_size=8, rope_max_seq_len=16,
)  # fmt: skip
def _sana_video(draw: Draw) -> dict[str, Any]:
    return {
        "hidden_states": draw.normal(2, 4, 2, 8, 8),
        "encoder_hidden_states": draw.normal(2, 6, 12),
        "timestep": draw.integers(1000, 2),
    }


@family(
    "SanaWMTransformer3DModel",
    {"blocks": (13, 13)},  # two are pointwise convolutions of the feed-forward
    uncalled=("*_proj_cam", "*.plucker_proj"),  # no camera
    in_channels=4, num_layers=2, hidden_size=32, num_attention_heads=2, linear_head_dim=16,
    softmax_every_n=2, chunk_plucker_channels=6, chunk_plucker_post_attn_blocks=2,
    caption_channels=12,
)  # fmt: skip
def _sana_wm(draw: Draw) -> dict[str, Any]:
    return {
        "hidden_states": draw.normal(2, 4, 2, 4, 4),
        "timestep": 1000 * draw.uniform(2, 1, 2),
        "encoder_hidden_states": draw.normal(2, 1, 6, 12),
        "mask": torch.ones(2, 6),
    }


@family(
    "CosmosTransformer3DModel",
    {"transformer_blocks": (16, 16)},
    in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=16, num_layers=2,
    mlp_ratio=2, text_embed_dim=12, adaln_lora_dim=4, max_size=(4, 8, 8),
    concat_padding_mask=False,
)  # fmt: skip
def _cosmos(draw: Draw) -> dict[str, Any]:
    return {
        "hidden_states": draw.normal(2, 4, 2, 8, 8),
        "timestep": draw.uniform(2),
        "encoder_hidden_states": draw.normal(2, 6, 12),
        "fps": 24,
    }


@family(
    "Cosmos3OmniTransformer",
    {"layers": (14, 14)},
    head_dim=16, hidden_size=32, intermediate_size=48, latent_channel=4, num_attention_heads=2,
    num_hidden_layers=2, num_key_value_heads=1, patch_latent_dim=16, vocab_size=32,
    rope_axes_dim=(4, 2, 2),
)  # fmt: skip
def _cosmos3(draw: Draw) -> dict[str, Any]:
    num_text, num_image = 6, 16
    image = torch.arange(num_text, num_text + num_image)
    return {
        "input_ids": draw.integers(32, num_text),
        "text_indexes": torch.arange(num_text),
        "position_ids": torch.arange(num_text + num_image).expand(3, -1),
        "und_len": num_text,
        "sequence_length": num_text + num_image,
        "vision_tokens": [draw.normal(1, 4, 1, 8, 8)],
        "vision_token_shapes": [(1, 4, 4)],
        "vision_sequence_indexes": image,
        "vision_mse_loss_indexes": image,
        "vision_timesteps": (1000 * draw.uniform(1)).expand(num_image),
        "vision_noisy_frame_indexes": [torch.arange(1)],
    }


@family(
    "Kandinsky5Transformer3DModel",
    {"text_transformer_blocks": (7, 7), "visual_transformer_blocks": (11, 11)},
    in_text_dim=12, in_text_dim2=8, time_dim=16, model_dim=32, ff_dim=48, num_visual_blocks=2,
    axes_dims=(4, 6, 6),
)  # fmt: skip
def _kandinsky5(draw: Draw) -> dict[str, Any]:
    return {
        "hidden_states": draw.normal(1, 2, 8, 8, 4),
        "encoder_hidden_states": draw.normal(1, 6, 12),
        "timestep": 1000 * draw.uniform(1),
        "pooled_projections": draw.normal(1, 8),
        "visual_rope_pos": [torch.arange(2), torch.arange(4), torch.arange(4)],
        "text_rope_pos": torch.arange(6),
    }


@family(
    "Kandinsky6Transformer3DModel",
    {
        "video_text_transformer_blocks": (7,),
        "audio_text_transformer_blocks": (7,),
        "visual_transformer_blocks": (32, 32),
    },
    in_visual_dim=4, out_visual_dim=4, in_text_dim=12, in_text_dim2=8, time_dim=16,
    model_dim=32, ff_dim=48, num_text_blocks=1, num_visual_blocks=2, axes_dims=(4, 6, 6),
    visual_cond=False, in_audio_dim=4, out_audio_dim=4,
)  # fmt: skip
def _kandinsky6(draw: Draw) -> dict[str, Any]:
    return {
        "hidden_states": draw.normal(2, 2, 8, 8, 4),
        "encoder_hidden_states": draw.normal(2, 6, 12),
        "pooled_projections": draw.normal(2, 8),
        "timestep": 1000 * draw.uniform(2),
        "audio_hidden_states": draw.normal(2, 5, 4),
    }


@family(
    "Kandinsky6SRTransformer3DModel",
    {"visual_transformer_blocks": (7, 7)},
    in_visual_dim=4, out_visual_dim=4, time_dim=16, model_dim=32, ff_dim=48,
    num_visual_blocks=2, axes_dims=(4, 6, 6),
)  # fmt: skip
def _kandinsky6_sr(draw: Draw) -> dict[str, Any]:
    return {"hidden_states": draw.normal(1, 2, 8, 8, 9), "timestep": 1000 * draw.uniform(1)}


@family(
    "MiniMaxH3Transformer3DModel",
    {"transformer_blocks": (7, 7)},
    auxiliary={"token_refiner.refiner_blocks": (6,)},
    num_attention_heads=2, attention_head_dim=16, hidden_size=32, num_layers=2,
    num_refiner_layers=1, ffn_dim=48, in_channels=4, audio_in_channels=4, text_dim=12,
    freq_dim=16, time_embed_hidden_dim=16, time_embed_dim=16, rope_freq_dim=2,
)  # fmt: skip
def _minimax_h3(draw: Draw) -> dict[str, Any]:
    return {
        "hidden_states": draw.normal(1, 16, 16),
        "audio_hidden_states": draw.normal(1, 5, 4),
        "encoder_hidden_states": draw.normal(1, 6, 12),
        "timestep": 1000 * draw.uniform(1),
        "timestep_indices": torch.zeros(27, dtype=torch.long),
        "token_tags": torch.tensor([0] * 6 + [1] * 16 + [2] * 5),
        "position_ids": torch.arange(27.0).view(27, 1).expand(-1, 3),
        "text_indices": torch.arange(6),
        "video_indices": torch.arange(6, 22),
        "audio_indices": torch.arange(22, 27),
    }


# --- Sound and others ---


@family(
    "StableAudioDiTModel",
    {"transformer_blocks": (10, 10)},
    sample_size=16, in_channels=4, num_layers=2, attention_head_dim=16, num_attention_heads=2,
    num_key_value_attention_heads=1, out_channels=4, cross_attention_dim=16, time_proj_dim=8,
    global_states_input_dim=20, cross_attention_input_dim=12,
)  # fmt: skip
def _stable_audio(draw: Draw) -> dict[str, Any]:
    return {
        "hidden_states": draw.normal(2, 4, 16),
        "timestep": draw.uniform(2),
        "encoder_hidden_states": draw.normal(2, 6, 12),
        "global_hidden_states": draw.normal(2, 1, 20),
        "rotary_embedding": tuple(draw.normal(2, 17, 8).unbind()),
    }


@family(
    "StableAudio3DiTModel",
    {"transformer_blocks": (9, 9)},
    uncalled=("*.to_local_embed.*",),  # no audio to fill in
    io_channels=4, embed_dim=32, depth=2, num_heads=2, cond_token_dim=12, global_cond_dim=8,
    local_add_cond_dim=5, timestep_features_dim=8, ff_mult=2, num_memory_tokens=3,
)  # fmt: skip
def _stable_audio3(draw: Draw) -> dict[str, Any]:
    return {
        "hidden_states": draw.normal(2, 4, 16),
        "timestep": draw.uniform(2),
        "encoder_hidden_states": draw.normal(2, 6, 12),
        "global_hidden_states": draw.normal(2, 8),
    }


@family(
    "AceStepTransformer1DModel",
    {"layers": (11, 11)},
    hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
    num_key_value_heads=1, head_dim=16, in_channels=12, audio_acoustic_hidden_dim=4,
    sliding_window=4,
)  # fmt: skip
def _ace_step(draw: Draw) -> dict[str, Any]:
    timestep = draw.uniform(2)
    return {
        "hidden_states": draw.normal(2, 16, 4),
        "timestep": timestep,
        "timestep_r": timestep,
        "encoder_hidden_states": draw.normal(2, 6, 32),
        "context_latents": draw.normal(2, 16, 8),
    }


@family(
    "LongCatAudioDiTTransformer",
    {"blocks": (10, 10)},
    dit_dim=32, dit_depth=2, dit_heads=2, dit_text_dim=12, latent_dim=4,
)  # fmt: skip
def _longcat_audio(draw: Draw) -> dict[str, Any]:
    return {
        "hidden_states": draw.normal(2, 16, 4),
        "encoder_hidden_states": draw.normal(2, 6, 12),
        "encoder_attention_mask": torch.ones(2, 6, dtype=torch.bool),
        "timestep": draw.uniform(2),
        "latent_cond": draw.normal(2, 16, 4),
    }


@family(
    "MiniMaxMusic3Transformer1DModel",
    {"transformer_blocks": (6, 6)},
    in_channels=4, condition_dim=12, num_layers=2, num_attention_heads=2, attention_head_dim=16,
    ff_inner_dim=48, rotary_dim=8, fourier_embedding_dim=8,
)  # fmt: skip
def _minimax_music3(draw: Draw) -> dict[str, Any]:
    return {
        "hidden_states": draw.normal(2, 4, 16),
        "timestep": draw.uniform(2),
        "encoder_hidden_states": draw.normal(2, 16, 12),
    }


@family(
    "T5FilmDecoder",
    {"decoders": (13, 13)},
    input_dims=8, targets_length=16, d_model=32, num_layers=2, num_heads=2, d_kv=16, d_ff=48,
)  # fmt: skip
def _t5_film(draw: Draw) -> dict[str, Any]:
    return {
        "encodings_and_masks": [(draw.normal(2, 6, 32), torch.ones(2, 6))],
        "decoder_input_tokens": draw.normal(2, 16, 8),
        "decoder_noise_time": draw.uniform(2),
    }


@family(
    "PriorTransformer",
    {"transformer_blocks": (6, 6)},
    num_attention_heads=2, attention_head_dim=16, num_layers=2, embedding_dim=12,
    num_embeddings=5, additional_embeddings=4,
)  # fmt: skip
def _prior(draw: Draw) -> dict[str, Any]:
    return {
        "hidden_states": draw.normal(2, 12),
        "timestep": draw.integers(1000, 2),
        "proj_embedding": draw.normal(2, 12),
        "encoder_hidden_states": draw.normal(2, 5, 12),
        "attention_mask": torch.ones(2, 5, dtype=torch.bool),
    }


@family(
    "RFD4ProteinaTransformer",
    # attn.to_bias has one output per head
    {"pair_update_layers": (15,), "transformer_layers": (13, 13, 13)},
    nlayers=3, token_dim=32, nheads=2, dim_cond=32, pair_repr_dim=32, latent_dim=4,
    t_emb_dim=16, tri_mult_c=8, feats_seq=("xt_bb_ca", "xt_local_latents"),
    feats_cond_seq=("time_emb_bb_ca", "time_emb_local_latents"),
    feats_pair_repr=("xt_bb_ca_pair_dists",), num_sequence_classes=5,
)  # fmt: skip
def _rfd4_proteina(draw: Draw) -> dict[str, Any]:
    everywhere = torch.ones(2, 6, dtype=torch.bool)
    return {
        "bb_ca": draw.normal(2, 6, 3),
        "local_latents": draw.normal(2, 6, 4),
        "bb_ca_time": draw.uniform(2),
        "local_latents_time": draw.uniform(2),
        "padding_mask": everywhere,
        "conditioning": {
            "is_in_context_conditioning": ~everywhere,
            "supports_local_latent": everywhere,
        },
    }
