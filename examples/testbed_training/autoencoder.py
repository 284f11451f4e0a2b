"""The autoencoder that both test beds share, and the latents that it makes of the scenes."""

from __future__ import annotations

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor

from testbeds import scenes

from .data import Data, load, pixels, scene_drawer
from .loop import Run, precision
from .settings import LATENT_CHANNELS, LATENT_SIZE, Settings

KL_WEIGHT = 1e-4
NESTED_SHARE = 0.5  # of a batch: objects inside others are the hardest to decode
LATENT_NOISE = 0.05  # a drawn latent is never quite one that the encoder gives


def new_autoencoder(settings: Settings) -> AutoencoderKL:
    """An untrained autoencoder of factor 4."""
    channels = settings.size.autoencoder
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        latent_channels=LATENT_CHANNELS,
        block_out_channels=channels,
        down_block_types=("DownEncoderBlock2D",) * len(channels),
        up_block_types=("UpDecoderBlock2D",) * len(channels),
        layers_per_block=1,
        norm_num_groups=8,
        sample_size=scenes.SIZE,
        mid_block_add_attention=False,
        scaling_factor=1.0,
        shift_factor=0.0,
    )


def train_autoencoder(settings: Settings) -> dict[str, float]:
    """Train it, make its latents white, round it to float16 and keep it in the runs."""
    data = load(settings)
    draw = scene_drawer(settings, len(data.images), NESTED_SHARE)
    torch.manual_seed(0)
    model = new_autoencoder(settings).to(settings.device, memory_format=torch.channels_last)
    images = torch.from_numpy(np.array(data.images)).to(settings.device)
    run = Run("autoencoder", {"vae": model}, settings)

    def loss_of(step: int, generator: torch.Generator) -> Tensor:
        batch = pixels(images[draw(generator)]).contiguous(memory_format=torch.channels_last)
        posterior = model.encode(batch).latent_dist
        mean, deviation = posterior.mean.float(), posterior.std.float()
        noise = torch.empty_like(mean).normal_(generator=generator)
        error = model.decode(mean + deviation * noise).sample.float() - batch
        kl = (mean.square() + deviation.square() - 1 - 2 * deviation.log()).mean() / 2
        return error.square().mean() + 0.2 * error.abs().mean() + KL_WEIGHT * kl

    state = run.train(loss_of)
    whiten(model, images[:4096])
    model.half().float()
    model.save_pretrained(settings.runs / "vae")
    (settings.runs / "latents.npy").unlink(missing_ok=True)
    state["error"] = reconstruction_error(model, images[:1024])
    print(f"autoencoder: mean error {state['error']:.2f} of 255", flush=True)
    return state


def train_decoder(settings: Settings) -> dict[str, float]:
    """Train the decoder alone.

    The encoder stays as it is, so beds that were trained on its latents stay valid, and get the
    new decoder.
    """
    data, device = load(settings), settings.device
    model = trained_autoencoder(settings).requires_grad_(False)
    trained = {"decoder": model.decoder, "post_quant_conv": model.post_quant_conv}
    for module in trained.values():
        module.requires_grad_(True)
    images = torch.from_numpy(np.array(data.images)).to(device)
    run, draw = Run("decoder", trained, settings), scene_drawer(settings, len(images), NESTED_SHARE)

    def loss_of(step: int, generator: torch.Generator) -> Tensor:
        batch = pixels(images[draw(generator)])
        with torch.no_grad():
            latents = model.encode(batch).latent_dist.mean.float()
        noise = torch.empty_like(latents).normal_(generator=generator)
        error = model.decode(latents + LATENT_NOISE * noise).sample.float() - batch
        return error.square().mean() + 0.2 * error.abs().mean()

    state = run.train(loss_of)
    model.half().float().save_pretrained(settings.runs / "vae")
    for bed in settings.out.glob("*/vae"):
        model.to("cpu", torch.float16).save_pretrained(bed)
    return state


@torch.no_grad()
def encode(model: AutoencoderKL, images: Tensor) -> Tensor:
    """The means of the posterior [N, 4, 16, 16] of images in bytes."""
    device = model.device
    return torch.cat(
        [model.encode(pixels(part.to(device))).latent_dist.mean for part in images.split(512)]
    )


@torch.no_grad()
def whiten(model: AutoencoderKL, images: Tensor) -> None:
    """Give every latent channel mean 0 and deviation 1 without a change to any picture.

    The two 1×1 convolutions beside the latent take the change up exactly, so `scaling_factor`
    is 1 and `shift_factor` 0, as a pipeline without a shift needs them.
    """
    latents = encode(model, images)
    mean, deviation = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    after, before = model.quant_conv, model.post_quant_conv
    before.bias += before.weight[:, :, 0, 0] @ mean
    before.weight *= deviation[None, :, None, None]
    after.weight[:LATENT_CHANNELS] /= deviation[:, None, None, None]
    after.bias[:LATENT_CHANNELS] = (after.bias[:LATENT_CHANNELS] - mean) / deviation
    after.bias[LATENT_CHANNELS:] -= 2 * deviation.log()


@torch.no_grad()
def reconstruction_error(model: AutoencoderKL, images: Tensor) -> float:
    """The mean absolute error of decoded pictures, in units of a byte."""
    latents, errors = encode(model, images), []
    for part, batch in zip(latents.split(256), images.split(256), strict=True):
        errors.append((model.decode(part).sample.clamp(-1, 1) - pixels(batch)).abs().mean())
    return torch.stack(errors).mean().item() * 127.5


def trained_autoencoder(settings: Settings) -> AutoencoderKL:
    """The autoencoder of an earlier run."""
    folder = settings.runs / "vae"
    if not folder.exists():
        raise SystemExit(f"no autoencoder in {folder}: run the stage autoencoder first")
    return AutoencoderKL.from_pretrained(folder).to(settings.device).eval()


def scene_latents(settings: Settings, data: Data) -> Tensor:
    """The latents of all scenes in float16 on the device, kept in a file."""
    file = settings.runs / "latents.npy"
    if not file.exists() or len(np.load(file, "r")) != len(data.images):
        model = trained_autoencoder(settings).to(memory_format=torch.channels_last)
        shape = (len(data.images), LATENT_CHANNELS, LATENT_SIZE, LATENT_SIZE)
        latents = np.empty(shape, np.float16)
        for first in range(0, len(latents), 4096):
            part = torch.from_numpy(np.array(data.images[first : first + 4096]))
            with precision(settings):
                latents[first : first + 4096] = encode(model, part).half().cpu().numpy()
        np.save(file, latents)
    return torch.from_numpy(np.load(file)).to(settings.device)
