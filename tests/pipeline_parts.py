"""What tiny pipelines are made of: denoisers, tokenizers, text encoders, VAEs, schedulers."""

from __future__ import annotations

import string
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tiny_denoisers import FAMILIES

CLIP_LENGTH = 77  # some pipelines do not ask the tokenizer
TEXT_WIDTH = 12  # what the denoisers of FAMILIES expect of an encoded token
TOKENS = ["<pad>", "</s>", "<unk>", " ", *string.digits, *string.ascii_letters, *string.punctuation]
CHAT_TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"


def denoiser(name: str, **changes: Any) -> nn.Module:
    """A denoiser of FAMILIES, its configuration changed where the pipeline demands it."""
    import diffusers

    return getattr(diffusers, name)(**FAMILIES[name].config | changes)


@torch.no_grad()
def around_one_(component: nn.Module) -> None:
    """Gains of norms around 1 instead of 0: else the condition fades on its way."""
    for name, parameter in component.named_parameters():
        if parameter.ndim == 1 and name.endswith("weight"):
            parameter.add_(1)


def tokenizer(length: int = 512) -> Any:
    """Each character is a token; the text ends with </s>."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    ids = {token: i for i, token in enumerate(TOKENS)}
    characters = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    characters.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    characters.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", ids["</s>"])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=characters,
        model_max_length=length,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        chat_template=CHAT_TEMPLATE,
    )


def clip_tokenizer() -> Any:
    return tokenizer(CLIP_LENGTH)


# --- Text encoders ---

T5: dict[str, Any] = {
    "vocab_size": len(TOKENS), "d_model": TEXT_WIDTH, "d_kv": 6, "d_ff": 16, "num_layers": 1,
    "num_heads": 2, "pad_token_id": 0, "eos_token_id": 1,
}  # fmt: skip
DECODER: dict[str, Any] = {
    "vocab_size": len(TOKENS), "hidden_size": TEXT_WIDTH, "intermediate_size": 16,
    "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
    "max_position_embeddings": 512, "pad_token_id": 0, "bos_token_id": None, "eos_token_id": 1,
}  # fmt: skip


def t5() -> Any:
    from transformers import T5Config, T5EncoderModel

    return T5EncoderModel(T5Config(**T5))


def umt5() -> Any:
    from transformers import UMT5Config, UMT5EncoderModel

    return UMT5EncoderModel(UMT5Config(**T5))


def clip(width: int, projection: bool = False) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        vocab_size=len(TOKENS), hidden_size=width, intermediate_size=16, projection_dim=width,
        num_hidden_layers=2, num_attention_heads=2, max_position_embeddings=CLIP_LENGTH,
        pad_token_id=0, bos_token_id=1, eos_token_id=1,
    )  # fmt: skip
    return CLIPTextModelWithProjection(config) if projection else CLIPTextModel(config)


def gemma() -> Any:
    from transformers import Gemma2Config, Gemma2Model

    return Gemma2Model(Gemma2Config(**DECODER, head_dim=6, query_pre_attn_scalar=6))


def qwen3() -> Any:
    from transformers import Qwen3Config, Qwen3Model

    return Qwen3Model(Qwen3Config(**DECODER, head_dim=6))


def qwen_vl() -> Any:
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    rotary = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 1]}
    config = Qwen2_5_VLConfig(
        text_config=DECODER | {"rope_parameters": rotary},
        vision_config={
            "depth": 1, "hidden_size": 8, "intermediate_size": 8, "num_heads": 2,
            "out_hidden_size": TEXT_WIDTH, "patch_size": 14,
        },
    )  # fmt: skip
    return Qwen2_5_VLForConditionalGeneration(config)


def llama() -> Any:
    from transformers import LlamaConfig, LlamaModel

    return LlamaModel(LlamaConfig(**DECODER | {"num_hidden_layers": 3}))


# --- Autoencoders ---


def image_vae(channels: int = 4, levels: int = 2) -> Any:
    """Each level but the first halves the sides."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(4,) * levels,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        norm_num_groups=1,
        latent_channels=channels,
        shift_factor=0.1,
        sample_size=16,
    )


def sana_vae() -> Any:
    from diffusers import AutoencoderDC

    return AutoencoderDC(
        latent_channels=4,
        attention_head_dim=2,
        encoder_block_types=("ResBlock", "EfficientViTBlock"),
        decoder_block_types=("ResBlock", "EfficientViTBlock"),
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        encoder_layers_per_block=(1, 1),
        decoder_layers_per_block=(1, 1),
        encoder_qkv_multiscales=((), (5,)),
        decoder_qkv_multiscales=((), (5,)),
        downsample_block_type="conv",
        upsample_block_type="interpolate",
    )


def ltx_vae() -> Any:
    from diffusers import AutoencoderKLLTXVideo

    return AutoencoderKLLTXVideo(
        latent_channels=8,
        block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 8, 8, 8),
        layers_per_block=(1, 1, 1, 1, 1),
        decoder_layers_per_block=(1, 1, 1, 1, 1),
        spatio_temporal_scaling=(True, True, False, False),
        decoder_spatio_temporal_scaling=(True, True, False, False),
        patch_size=1,
    )


def cogvideox_vae() -> Any:
    from diffusers import AutoencoderKLCogVideoX

    return AutoencoderKLCogVideoX(
        block_out_channels=(8, 8, 8, 8),
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=2,
    )


WAN: dict[str, Any] = {
    "base_dim": 3, "z_dim": 4, "dim_mult": [1, 1, 1, 1], "num_res_blocks": 1,
    "latents_mean": [0.1, -0.2, 0.3, 0.0], "latents_std": [2.0, 1.5, 3.0, 1.0],
}  # fmt: skip


def wan_vae() -> Any:
    from diffusers import AutoencoderKLWan

    return AutoencoderKLWan(**WAN)


def qwen_image_vae() -> Any:
    from diffusers import AutoencoderKLQwenImage

    return AutoencoderKLQwenImage(**WAN)


def hunyuan_video_vae() -> Any:
    from diffusers import AutoencoderKLHunyuanVideo

    return AutoencoderKLHunyuanVideo(
        latent_channels=4,
        block_out_channels=(4, 4, 4, 4),
        layers_per_block=1,
        norm_num_groups=2,
    )


# --- Schedulers ---


def flow() -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler

    return FlowMatchEulerDiscreteScheduler()


def flow_by_dpm_solver() -> Any:
    from diffusers import DPMSolverMultistepScheduler

    return DPMSolverMultistepScheduler(
        use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=3
    )


def flow_by_unipc() -> Any:
    from diffusers import UniPCMultistepScheduler

    return UniPCMultistepScheduler(
        use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=3
    )


# --- A CLIP that compares images with texts ---


def save_clip(folder: Path) -> Path:
    """A whole CLIP of random weights with its tokenizer and image processor."""
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

    text = {
        "vocab_size": len(TOKENS), "hidden_size": 16, "intermediate_size": 16,
        "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": CLIP_LENGTH,
        "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1,
    }  # fmt: skip
    vision = {
        "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2,
        "num_attention_heads": 2, "image_size": 32, "patch_size": 8,
    }  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        CLIPModel(
            CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)
        ).save_pretrained(folder)
    size = {"height": 32, "width": 32}
    CLIPImageProcessor(size=size, crop_size=size).save_pretrained(folder)
    clip_tokenizer().save_pretrained(folder)
    return folder


def flux(name: str, **more: Any) -> Any:
    """A pipeline of the Flux family, by the name of its class."""
    import diffusers

    return getattr(diffusers, name)(
        scheduler=flow(),
        vae=image_vae(channels=1),
        text_encoder=clip(16),
        tokenizer=clip_tokenizer(),
        text_encoder_2=t5(),
        tokenizer_2=tokenizer(),
        transformer=denoiser("FluxTransformer2DModel"),
        **more,
    )
