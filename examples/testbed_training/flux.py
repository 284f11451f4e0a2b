"""Test bed (b): a FLUX with double and single blocks, on the first bed's frozen T5 encoder."""

from __future__ import annotations

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from torch import Tensor, nn
from transformers import CLIPTextModel, T5EncoderModel, T5TokenizerFast

from testbeds import scenes

from .autoencoder import scene_latents, trained_autoencoder
from .data import load, pick, scene_drawer
from .folders import compile_blocks, float_residual, write_folder
from .loop import Run
from .settings import CAPTION_DROPOUT, LATENT_CHANNELS, LATENT_SIZE, Settings, Size
from .text import drop_captions, new_clip, new_clip_tokenizer, token_ids

UNIFORM_EVERY = 5  # noise levels drawn uniformly, the others logit-normally


def new_transformer(size: Size) -> FluxTransformer2DModel:
    """An untrained transformer whose blocks start as the identity and whose output as zero."""
    model = FluxTransformer2DModel(
        patch_size=1,
        in_channels=4 * LATENT_CHANNELS,
        num_layers=size.double_blocks,
        num_single_layers=size.single_blocks,
        attention_head_dim=size.head_width,
        num_attention_heads=size.heads,
        joint_attention_dim=size.t5_width,
        pooled_projection_dim=size.clip_width,
        guidance_embeds=False,
        axes_dims_rope=size.rope,
    )
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
            if "norm" in name.split(".")[-2:][0] or name == "proj_out":
                nn.init.zeros_(module.weight)
    return model


def pack(latents: Tensor) -> Tensor:
    """Latents [B, C, 16, 16] as the pipeline packs them: [B, 64, 4 C]."""
    return FluxPipeline._pack_latents(latents, *latents.shape)


def denoise(
    transformer: FluxTransformer2DModel,
    encoders: tuple[CLIPTextModel, T5EncoderModel],
    noisy: Tensor,
    noise_level: Tensor,
    clip_ids: Tensor,
    t5_ids: Tensor,
) -> Tensor:
    """The predicted flow of packed latents, asked for as `FluxPipeline` asks."""
    clip, t5 = encoders
    with torch.no_grad():
        text = t5(t5_ids, output_hidden_states=False)[0].float()
    half, device = LATENT_SIZE // 2, noisy.device
    return transformer(
        hidden_states=noisy,
        timestep=noise_level,
        guidance=None,
        pooled_projections=clip(clip_ids, output_hidden_states=False).pooler_output.float(),
        encoder_hidden_states=text,
        txt_ids=torch.zeros(text.shape[1], 3, device=device),
        img_ids=FluxPipeline._prepare_latent_image_ids(1, half, half, device, torch.float32),
        joint_attention_kwargs={},
        return_dict=False,
    )[0]


def noise_levels(uniform: Tensor) -> Tensor:
    """Levels in (0, 1), one out of every share of a logit-normal or of the uniform law."""
    rows = torch.arange(len(uniform), device=uniform.device)
    share = ((rows + uniform) / len(uniform)).clamp(1e-5, 1 - 1e-5)
    return torch.where(rows % UNIFORM_EVERY == 0, share, torch.special.ndtri(share).sigmoid())


def frozen_t5(settings: Settings) -> tuple[T5TokenizerFast, T5EncoderModel]:
    """The first bed's tokenizer and T5 encoder, rounded as its folder holds them."""
    folder = settings.out / "pixart"
    if not folder.exists():
        raise SystemExit(f"no first bed in {folder}: run the stage pixart first")
    encoder = T5EncoderModel.from_pretrained(folder / "text_encoder", dtype=torch.float32)
    tokenizer = T5TokenizerFast.from_pretrained(folder / "tokenizer")
    return tokenizer, encoder.to(settings.device).eval().requires_grad_(False)


def train_flux(settings: Settings) -> dict[str, float]:
    """Train the transformer and CLIP, and write the pipeline's folder."""
    data, device, number = load(settings), settings.device, settings.batch_size
    latents = scene_latents(settings, data)
    t5_tokens = torch.from_numpy(data.t5.astype("int64")).to(device)
    clip_tokens = torch.from_numpy(data.clip.astype("int64")).to(device)
    torch.manual_seed(0)
    t5_tokenizer, t5 = frozen_t5(settings)
    clip_tokenizer = new_clip_tokenizer(scenes.VOCABULARY)
    transformer = new_transformer(settings.size).to(device)
    clip = new_clip(clip_tokenizer, settings.size).to(device)
    run = Run("flux", {"transformer": transformer, "text_encoder": clip}, settings)
    float_residual(transformer.x_embedder, transformer.context_embedder)
    if settings.compile:
        compile_blocks(transformer)
    empty = [token_ids(t, [""]).to(device) for t in (clip_tokenizer, t5_tokenizer)]

    draw = scene_drawer(settings, len(latents), settings.nested_share)

    def loss_of(step: int, generator: torch.Generator) -> Tensor:
        def uniform() -> Tensor:
            return torch.rand(number, generator=generator, device=device)

        index = draw(generator)
        clean = pack(latents[index].float())
        noise = torch.empty_like(clean).normal_(generator=generator)
        chosen, dropped = pick(t5_tokens, index, generator), uniform() < CAPTION_DROPOUT
        clip_ids = drop_captions(clip_tokens[index, chosen], empty[0], dropped)
        t5_ids = drop_captions(t5_tokens[index, chosen], empty[1], dropped)
        level = noise_levels(uniform())
        share = level[:, None, None]
        noisy = (1 - share) * clean + share * noise
        predicted = denoise(transformer, (clip, t5), noisy, level, clip_ids, t5_ids)
        return (predicted.float() - (noise - clean)).square().mean()

    state = run.train(loss_of)
    pipeline = FluxPipeline(
        FlowMatchEulerDiscreteScheduler(shift=1.0),
        trained_autoencoder(settings),
        clip,
        clip_tokenizer,
        t5,
        t5_tokenizer,
        transformer,
    )
    write_folder("flux", pipeline, state, settings)
    return state
