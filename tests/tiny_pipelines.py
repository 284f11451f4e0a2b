"""Tiny diffusers pipelines, made offline from configurations, one for each style of denoiser call.

Each entry of `PIPELINES` builds one: real classes, every weight drawn anew, a tokenizer of single
characters. `FACTS` says how each calls its denoiser, read in the pipeline's source. A pipeline
saved by `save_pretrained` loads back by `DiffusionPipeline.from_pretrained`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

import pipeline_parts as parts
from tiny_denoisers import redraw_


@dataclass(frozen=True)
class Facts:
    """How a pipeline calls its denoiser, with guidance as it is by default.

    Args:
        rows_per_image: rows of the noisy sample for one image in one call; 2 where guidance
            stacks condition and none.
        calls_per_step: denoiser calls in one step; 2 where guidance calls for none apart.
        timestep_scale: 1000 or 1, of the timestep that the denoiser is given.
        timestep_rises: whether that is 0 for noise.
        timestep_per_token: whether each row has one for each token.
        guidance_embedding: whether the denoiser is told the guidance scale.
        sample_is_list: whether the noisy sample is a list of tensors, one for each row.
        denoisers: components that denoise.
        options: arguments that keep the output small.
        negative_prompt: one for each image, where there is no guidance without.
    """

    rows_per_image: int
    calls_per_step: int
    timestep_scale: int
    timestep_rises: bool = False
    timestep_per_token: bool = False
    guidance_embedding: bool = False
    sample_is_list: bool = False
    denoisers: tuple[str, ...] = ("transformer",)
    options: dict[str, Any] = field(default_factory=dict)
    negative_prompt: str | None = None

    def arguments(self, num_images: int) -> dict[str, Any]:
        """Arguments for a call of the pipeline, besides what to draw and in how many steps."""
        if self.negative_prompt is None:
            return self.options
        return self.options | {"negative_prompt": [self.negative_prompt] * num_images}


PIPELINES: dict[str, Callable[[], Any]] = {}
FACTS: dict[str, Facts] = {}

Make = Callable[[], Any]


def pipeline(name: str, facts: Facts) -> Callable[[Make], Make]:
    """Puts a pipeline into the tables; what is built has its weights drawn anew, and is silent."""

    def add(make: Make) -> Make:
        assert name not in PIPELINES

        def build() -> Any:
            with torch.random.fork_rng():
                built = make()
            for seed, (_, component) in enumerate(sorted(built.components.items())):
                if isinstance(component, nn.Module):
                    parts.around_one_(redraw_(component, seed))
            built.set_progress_bar_config(disable=True)
            return built

        PIPELINES[name] = build
        FACTS[name] = facts
        return make

    return add


# --- Guidance stacks condition and none in one call ---


@pipeline("DiTPipeline", Facts(2, 1, 1000))
def _dit() -> Any:
    from diffusers import DDIMScheduler, DiTPipeline

    return DiTPipeline(
        # The pipeline's label for no condition is 1000, whatever the number of classes.
        transformer=parts.denoiser("DiTTransformer2DModel", num_embeds_ada_norm=1000),
        vae=parts.image_vae(),
        scheduler=DDIMScheduler(clip_sample=False),
    )


@pipeline("PixArtSigmaPipeline", Facts(2, 1, 1000))
def _pixart() -> Any:
    from diffusers import DPMSolverMultistepScheduler, PixArtSigmaPipeline

    return PixArtSigmaPipeline(
        tokenizer=parts.tokenizer(),
        text_encoder=parts.t5(),
        vae=parts.image_vae(levels=4),
        # Noise and variance; and the smallest size that the pipeline knows.
        transformer=parts.denoiser("PixArtTransformer2DModel", out_channels=8, sample_size=32),
        scheduler=DPMSolverMultistepScheduler(),
    )


@pipeline("StableDiffusion3Pipeline", Facts(2, 1, 1000))
def _sd3() -> Any:
    from diffusers import StableDiffusion3Pipeline

    return StableDiffusion3Pipeline(
        transformer=parts.denoiser("SD3Transformer2DModel"),
        scheduler=parts.flow(),
        vae=parts.image_vae(),
        text_encoder=parts.clip(6, projection=True),
        tokenizer=parts.clip_tokenizer(),
        text_encoder_2=parts.clip(10, projection=True),
        tokenizer_2=parts.clip_tokenizer(),
        text_encoder_3=parts.t5(),
        tokenizer_3=parts.tokenizer(),
    )


SANA: dict[str, Any] = {
    "height": 32, "width": 32, "use_resolution_binning": False, "complex_human_instruction": None,
}  # fmt: skip


@pipeline("SanaPipeline", Facts(2, 1, 1000, options=SANA))
def _sana() -> Any:
    from diffusers import SanaPipeline

    return SanaPipeline(
        tokenizer=parts.tokenizer(),
        text_encoder=parts.gemma(),
        vae=parts.sana_vae(),
        transformer=parts.denoiser("SanaTransformer2DModel"),
        scheduler=parts.flow_by_dpm_solver(),
    )


Z_IMAGE: dict[str, Any] = {"height": 16, "width": 16}


@pipeline(
    "ZImagePipeline", Facts(2, 1, 1, timestep_rises=True, sample_is_list=True, options=Z_IMAGE)
)
def _z_image() -> Any:
    from diffusers import ZImagePipeline

    return ZImagePipeline(
        scheduler=parts.flow(),
        vae=parts.image_vae(),
        text_encoder=parts.qwen3(),
        tokenizer=parts.tokenizer(),
        transformer=parts.denoiser("ZImageTransformer2DModel", axes_lens=[1024, 16, 16]),
    )


@pipeline("CogVideoXPipeline", Facts(2, 1, 1000))
def _cogvideox() -> Any:
    from diffusers import CogVideoXDDIMScheduler, CogVideoXPipeline

    return CogVideoXPipeline(
        tokenizer=parts.tokenizer(),
        text_encoder=parts.t5(),
        vae=parts.cogvideox_vae(),
        transformer=parts.denoiser("CogVideoXTransformer3DModel", max_text_seq_length=226),
        scheduler=CogVideoXDDIMScheduler(prediction_type="v_prediction"),
    )


SMALL_VIDEO = {"height": 32, "width": 32, "num_frames": 9}


@pipeline("LTXPipeline", Facts(2, 1, 1000, options=SMALL_VIDEO))
def _ltx() -> Any:
    from diffusers import LTXPipeline

    return LTXPipeline(
        scheduler=parts.flow(),
        vae=parts.ltx_vae(),
        text_encoder=parts.t5(),
        tokenizer=parts.tokenizer(),
        transformer=parts.denoiser("LTXVideoTransformer3DModel"),
    )


# --- Guidance calls once for the condition and once for none ---


@pipeline("Lumina2Pipeline", Facts(1, 2, 1, timestep_rises=True))
def _lumina2() -> Any:
    from diffusers import Lumina2Pipeline

    return Lumina2Pipeline(
        transformer=parts.denoiser("Lumina2Transformer2DModel", axes_lens=(512, 16, 16)),
        scheduler=parts.flow(),
        vae=parts.image_vae(),
        text_encoder=parts.gemma(),
        tokenizer=parts.tokenizer(),
    )


@pipeline(
    "QwenImagePipeline",
    Facts(1, 2, 1, options={"height": 32, "width": 32}, negative_prompt=" "),
)
def _qwen_image() -> Any:
    from diffusers import QwenImagePipeline

    return QwenImagePipeline(
        scheduler=parts.flow(),
        vae=parts.qwen_image_vae(),
        text_encoder=parts.qwen_vl(),
        tokenizer=parts.tokenizer(),
        transformer=parts.denoiser("QwenImageTransformer2DModel"),
    )


def wan(**more: Any) -> Any:
    from diffusers import WanPipeline

    return WanPipeline(
        tokenizer=parts.tokenizer(),
        text_encoder=parts.umt5(),
        vae=parts.wan_vae(),
        scheduler=parts.flow_by_unipc(),
        transformer=parts.denoiser("WanTransformer3DModel"),
        **more,
    )


@pipeline("WanPipeline", Facts(1, 2, 1000, options=SMALL_VIDEO))
def _wan() -> Any:
    return wan()


@pipeline(
    "WanPipeline, two denoisers",
    Facts(1, 2, 1000, denoisers=("transformer", "transformer_2"), options=SMALL_VIDEO),
)
def _wan_of_two() -> Any:
    """The first for noise, the second from `boundary_ratio` on."""
    return wan(transformer_2=parts.denoiser("WanTransformer3DModel"), boundary_ratio=0.875)


@pipeline(
    "WanPipeline, a timestep for each token",
    Facts(1, 2, 1000, timestep_per_token=True, options=SMALL_VIDEO),
)
def _wan_by_token() -> Any:
    return wan(expand_timesteps=True)


# --- Guidance is an input ---


@pipeline(
    "FluxPipeline",
    Facts(1, 1, 1, guidance_embedding=True, options={"height": 16, "width": 16}),
)
def _flux() -> Any:
    return parts.flux("FluxPipeline")


@pipeline(
    "HunyuanVideoPipeline",
    Facts(1, 1, 1000, guidance_embedding=True, options=SMALL_VIDEO),
)
def _hunyuan_video() -> Any:
    from diffusers import HunyuanVideoPipeline

    return HunyuanVideoPipeline(
        text_encoder=parts.llama(),
        tokenizer=parts.tokenizer(),
        transformer=parts.denoiser("HunyuanVideoTransformer3DModel"),
        vae=parts.hunyuan_video_vae(),
        scheduler=parts.flow(),
        text_encoder_2=parts.clip(16),
        tokenizer_2=parts.clip_tokenizer(),
    )
