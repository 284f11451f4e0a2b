"""Test bed (a): a PixArt-Σ, trained together with the T5 encoder that both beds share."""

from __future__ import annotations

import torch
from diffusers import DPMSolverMultistepScheduler, PixArtSigmaPipeline, PixArtTransformer2DModel
from torch import Tensor, nn
from transformers import T5EncoderModel

from testbeds import scenes

from .autoencoder import scene_latents, trained_autoencoder
from .data import load, pick, scene_drawer
from .folders import compile_blocks, float_residual, write_folder
from .loop import Run
from .settings import CAPTION_DROPOUT, LATENT_CHANNELS, LATENT_SIZE, Settings, Size
from .text import PAD, drop_captions, new_t5, new_t5_tokenizer, token_ids

# FluxPipeline hands T5 no mask. Where every fourth caption is encoded that way, the frozen encoder
# knows padding when the second bed asks for it; this bed's own cross-attention masks all padding.
UNMASKED_EVERY = 4


def new_scheduler() -> DPMSolverMultistepScheduler:
    """PixArt's scheduler and its noise, with the velocity predicted (arXiv 2202.00512)."""
    return DPMSolverMultistepScheduler(
        beta_schedule="linear",
        beta_start=0.0001,
        beta_end=0.02,
        prediction_type="v_prediction",
        algorithm_type="dpmsolver++",
        solver_order=2,
    )


def new_transformer(size: Size) -> PixArtTransformer2DModel:
    """An untrained transformer that starts as the paper's: xavier, and zero where it ends."""
    model = PixArtTransformer2DModel(
        num_attention_heads=size.heads,
        attention_head_dim=size.head_width,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        num_layers=size.pixart_blocks,
        cross_attention_dim=size.width,
        sample_size=LATENT_SIZE,
        patch_size=2,
        caption_channels=size.t5_width,
        interpolation_scale=1,
        use_additional_conditions=False,
    )
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
    nn.init.normal_(model.adaln_single.linear.weight, std=0.02)
    nn.init.zeros_(model.proj_out.weight)
    return model


def denoise(
    transformer: PixArtTransformer2DModel,
    text_encoder: T5EncoderModel,
    noisy: Tensor,
    timestep: Tensor,
    ids: Tensor,
    unmasked: Tensor | None = None,
) -> Tensor:
    """The predicted velocity, asked for as `PixArtSigmaPipeline` asks."""
    mask = (ids != PAD).long()
    text_mask = mask if unmasked is None else torch.where(unmasked[:, None], 1, mask)
    text = text_encoder(ids, attention_mask=text_mask)[0].float()
    return transformer(
        noisy,
        encoder_hidden_states=text,
        encoder_attention_mask=mask,
        timestep=timestep,
        added_cond_kwargs={"resolution": None, "aspect_ratio": None},
        return_dict=False,
    )[0]


def train_pixart(settings: Settings) -> dict[str, float]:
    """Train the transformer and T5, and write the pipeline's folder."""
    data, device, number = load(settings), settings.device, settings.batch_size
    latents = scene_latents(settings, data)
    tokens = torch.from_numpy(data.t5.astype("int64")).to(device)
    torch.manual_seed(0)
    tokenizer, scheduler = new_t5_tokenizer(scenes.VOCABULARY), new_scheduler()
    transformer = new_transformer(settings.size).to(device)
    text_encoder = new_t5(len(tokenizer), settings.size).to(device)
    run = Run("pixart", {"transformer": transformer, "text_encoder": text_encoder}, settings)
    float_residual(transformer.pos_embed.proj, transformer.pos_embed)
    if settings.compile:
        compile_blocks(transformer)
    signal = scheduler.alphas_cumprod.to(device)
    empty = token_ids(tokenizer, [""]).to(device)
    rows = torch.arange(number, device=device)

    draw = scene_drawer(settings, len(latents), settings.nested_share)

    def loss_of(step: int, generator: torch.Generator) -> Tensor:
        def uniform() -> Tensor:
            return torch.rand(number, generator=generator, device=device)

        index = draw(generator)
        clean = latents[index].float()
        noise = torch.empty_like(clean).normal_(generator=generator)
        ids = tokens[index, pick(tokens, index, generator)]
        ids = drop_captions(ids, empty, uniform() < CAPTION_DROPOUT)
        # One timestep out of every share of the schedule, so that the loss varies less.
        timestep = ((rows + uniform()) / number * len(signal)).long().clamp(max=len(signal) - 1)
        alpha = signal[timestep].view(-1, 1, 1, 1)
        noisy = alpha.sqrt() * clean + (1 - alpha).sqrt() * noise
        velocity = alpha.sqrt() * noise - (1 - alpha).sqrt() * clean
        unmasked = rows % UNMASKED_EVERY == 0
        predicted = denoise(transformer, text_encoder, noisy, timestep, ids, unmasked)
        return (predicted.float() - velocity).square().mean()

    state = run.train(loss_of)
    pipeline = PixArtSigmaPipeline(
        tokenizer, text_encoder, trained_autoencoder(settings), transformer, scheduler
    )
    write_folder("pixart", pipeline, state, settings)
    return state
