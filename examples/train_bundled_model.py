"""How was the bundled model made, and how do I make my own?

Trains, on any labelled images, a complete diffusers `DiTPipeline` folder (DiTTransformer2DModel +
AutoencoderKL + DDIMScheduler) and the classifier that judges it:

    python examples/train_bundled_model.py --data mnist.npz --out runs/mnist --minutes 100

`--data` is an .npz (`train_images`, `train_labels`, `test_images`, `test_labels`) or a folder
with one sub-folder of pictures per class. Everything is resumable: stop it with Ctrl-C or kill -9
and run the same command again. Stages: classifier → autoencoder → latents → DiT → card.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from diffusers import AutoencoderKL, DDIMScheduler, DiTPipeline, DiTTransformer2DModel
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from ditprune.bundled import (
    IMAGE_SIZE,
    NUM_CLASSES,
    DigitClassifier,
    predict,
)
from ditprune.evaluation.metrics.distributions import frechet_distance, moments

NULL_CLASS = 1000  # DiTPipeline hard-codes this label for classifier-free guidance
LABEL_DROPOUT = 0.1
# Velocity, as in arXiv 2202.00512: with only 256 latent numbers an image, predicting the noise
# leaves an error floor at the noisy steps that is larger than the image itself.
PREDICTION = "v_prediction"
NUM_INFERENCE_STEPS, GUIDANCE_SCALE = 25, 1.5


def load_images(path: Path) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Train and test images [N, 1, 32, 32] in [0, 1] with their labels [N]."""
    if path.is_dir():
        return _load_folder(path)
    with np.load(path, allow_pickle=False) as arrays:
        return (
            _to_square(torch.from_numpy(arrays["train_images"])),
            torch.from_numpy(arrays["train_labels"]).long(),
            _to_square(torch.from_numpy(arrays["test_images"])),
            torch.from_numpy(arrays["test_labels"]).long(),
        )


def _load_folder(folder: Path) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    images, labels = [], []
    for label, class_folder in enumerate(sorted(p for p in folder.iterdir() if p.is_dir())):
        for file in sorted(class_folder.iterdir()):
            grey = Image.open(file).convert("L").resize((IMAGE_SIZE, IMAGE_SIZE))
            images.append(torch.from_numpy(np.array(grey)))
            labels.append(label)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    stacked, targets = _to_square(torch.stack(images))[order], torch.tensor(labels)[order]
    cut = len(order) * 6 // 7
    return stacked[:cut], targets[:cut], stacked[cut:], targets[cut:]


def _to_square(images_uint8: Tensor) -> Tensor:
    images = images_uint8.float()[:, None] / 255
    height, width = images.shape[-2:]
    if height <= IMAGE_SIZE and width <= IMAGE_SIZE:
        top, left = (IMAGE_SIZE - height) // 2, (IMAGE_SIZE - width) // 2
        return F.pad(images, (left, IMAGE_SIZE - width - left, top, IMAGE_SIZE - height - top))
    return F.interpolate(images, (IMAGE_SIZE, IMAGE_SIZE), mode="bilinear", antialias=True)


def step_generator(stage: int, step: int) -> torch.Generator:
    """Every step draws from its own seed, so a resumed run draws what the first would have."""
    return torch.Generator().manual_seed(stage * 10_000_000 + step)


def train_classifier(out: Path, data: tuple[Tensor, ...], epochs: int) -> DigitClassifier:
    classifier = DigitClassifier()
    file = out / "classifier.safetensors"
    if file.exists():
        classifier.load_state_dict(load_file(file))
        return classifier.eval()
    images, labels, test_images, test_labels = data
    num_steps = epochs * len(images) // 128
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=2e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=num_steps)
    classifier.train()
    for step in range(num_steps):
        generator = step_generator(0, step)
        index = torch.randint(len(images), (128,), generator=generator)
        dy, dx = torch.randint(-2, 3, (2,), generator=generator).tolist()
        batch = torch.roll(images[index], (dy, dx), dims=(2, 3))
        loss = F.cross_entropy(classifier(batch), labels[index], label_smoothing=0.05)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 500 == 0:
            print(f"classifier step {step}/{num_steps} loss {loss.item():.4f}", flush=True)
    classifier.eval()
    accuracy = (predict(classifier, test_images) == test_labels).float().mean().item()
    print(f"classifier: test accuracy {accuracy:.4f}", flush=True)
    save_file(classifier.state_dict(), file, metadata={"test_accuracy": f"{accuracy:.4f}"})
    return classifier


def train_autoencoder(out: Path, images: Tensor, num_steps: int) -> AutoencoderKL:
    folder = out / "vae"
    if folder.exists():
        return AutoencoderKL.from_pretrained(folder).eval()
    torch.manual_seed(0)
    vae = AutoencoderKL(
        in_channels=1,
        out_channels=1,
        latent_channels=4,
        block_out_channels=(16, 32, 64),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=1,
        norm_num_groups=8,
        sample_size=IMAGE_SIZE,
        mid_block_add_attention=False,
    )
    optimizer = torch.optim.AdamW(vae.parameters(), lr=1e-3, weight_decay=0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=num_steps)
    for step in range(num_steps):
        generator = step_generator(1, step)
        index = torch.randint(len(images), (64,), generator=generator)
        batch = images[index] * 2 - 1
        with torch.autocast("cpu", torch.bfloat16):
            posterior = vae.encode(batch).latent_dist
            reconstruction = vae.decode(posterior.sample(generator)).sample
        error = reconstruction.float() - batch
        kl = posterior.kl().mean() / posterior.mean[0].numel()
        loss = error.square().mean() + 0.2 * error.abs().mean() + 2e-4 * kl
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 0:
            mse = error.square().mean().item()
            print(f"vae step {step}/{num_steps} mse {mse:.5f} kl {kl.item():.3f}", flush=True)
    vae.eval()
    mean, _ = encode(vae, images[:2000])
    vae.register_to_config(scaling_factor=round(1 / mean.std().item(), 4))
    vae.save_pretrained(folder)
    return vae


def encode(vae: AutoencoderKL, images: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the latent posterior, [N, 4, 8, 8] each, unscaled."""
    means, deviations = [], []
    with torch.inference_mode():
        for batch in images.split(250):
            posterior = vae.encode(batch * 2 - 1).latent_dist
            means.append(posterior.mean)
            deviations.append(posterior.std)
    return torch.cat(means), torch.cat(deviations)


def cached_latents(out: Path, vae: AutoencoderKL, images: Tensor) -> tuple[Tensor, Tensor]:
    file = out / "latents.safetensors"
    if not file.exists():
        mean, deviation = encode(vae, images)
        save_file({"mean": mean, "deviation": deviation}, file)
    tensors = load_file(file)
    scale = vae.config.scaling_factor
    return tensors["mean"] * scale, tensors["deviation"] * scale


def new_transformer() -> DiTTransformer2DModel:
    return DiTTransformer2DModel(
        num_attention_heads=5,
        attention_head_dim=32,
        num_layers=8,
        in_channels=4,
        out_channels=4,
        sample_size=8,
        patch_size=2,
        num_embeds_ada_norm=1000,
    )


def initialise(transformer: DiTTransformer2DModel) -> None:
    """The DiT paper's start (arXiv 2212.09748, section 3.2): xavier, zero adaLN, one embedder.

    diffusers keeps a copy of the timestep and class embedder in every block; the paper's model
    has one. They are trained as one module and written out as equal copies.
    """
    for module in transformer.modules():
        if isinstance(module, torch.nn.Linear):
            torch.nn.init.xavier_uniform_(module.weight)
            torch.nn.init.zeros_(module.bias)
    embedding = transformer.transformer_blocks[0].norm1.emb
    embedding.class_embedder.dropout_prob = 0  # labels are dropped once per image, below
    torch.nn.init.normal_(embedding.class_embedder.embedding_table.weight, std=0.02)
    for block in transformer.transformer_blocks:
        block.norm1.emb = embedding
        torch.nn.init.zeros_(block.norm1.linear.weight)
    torch.nn.init.zeros_(transformer.proj_out_1.weight)
    torch.nn.init.zeros_(transformer.proj_out_2.weight)


def train_transformer(
    out: Path,
    latents: tuple[Tensor, Tensor],
    labels: Tensor,
    num_steps: int,
    batch_size: int,
    minutes: float,
) -> tuple[DiTTransformer2DModel, dict]:
    """Velocity-prediction training with a moving average of the weights; returns the average.

    The learning rate follows the larger of two clocks, steps and minutes, so that a run which
    has only so much time still ends annealed.
    """
    torch.manual_seed(0)
    model = new_transformer()
    initialise(model)
    # Trained untied-by-name, tied-by-object: parameters() yields the shared embedder once.
    parameters = list(model.parameters())
    ema = [p.detach().clone() for p in parameters]
    optimizer = torch.optim.AdamW(
        parameters, lr=1e-3, weight_decay=0, betas=(0.9, 0.99), fused=True
    )
    signal = DDIMScheduler().alphas_cumprod
    mean, deviation = latents
    state = {"step": 0, "seconds": 0.0, "loss": float("nan")}
    checkpoint = out / "transformer.ckpt"
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        for own, theirs in zip(parameters, saved["parameters"], strict=True):
            own.data.copy_(theirs)
        ema, state = saved["ema"], saved["state"]
        optimizer.load_state_dict(saved["optimizer"])
        print(f"transformer: resumed at step {state['step']}", flush=True)

    def save() -> None:
        beside = checkpoint.with_suffix(".part")
        optimizer_state = optimizer.state_dict()
        torch.save(
            {"parameters": parameters, "ema": ema, "optimizer": optimizer_state, "state": state},
            beside,
        )
        beside.rename(checkpoint)

    model.train()
    losses, clock = [], time.monotonic()
    while (progress := max(state["step"] / num_steps, state["seconds"] / 60 / minutes)) < 1:
        step = state["step"]
        rate = 1e-3 * min(1, step / 500) * (0.5 + 0.5 * math.cos(math.pi * progress))
        for group in optimizer.param_groups:
            group["lr"] = max(rate, 1e-6)
        generator = step_generator(2, step)
        index = torch.randint(len(mean), (batch_size,), generator=generator)
        clean = mean[index] + deviation[index] * torch.randn(mean[index].shape, generator=generator)
        noise = torch.randn(clean.shape, generator=generator)
        timestep = torch.randint(1000, (batch_size,), generator=generator)
        dropped = torch.rand(batch_size, generator=generator) < LABEL_DROPOUT
        target = labels[index].masked_fill(dropped, NULL_CLASS)
        alpha = signal[timestep].view(-1, 1, 1, 1)
        noisy = alpha.sqrt() * clean + (1 - alpha).sqrt() * noise
        # torch's CPU flash attention spends more than half of a step in its backward pass.
        velocity = alpha.sqrt() * noise - (1 - alpha).sqrt() * clean
        with torch.autocast("cpu", torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
            predicted = model(noisy, timestep=timestep, class_labels=target).sample
        loss = F.mse_loss(predicted.float(), velocity)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        torch._foreach_lerp_(
            ema, [p.detach() for p in parameters], 1 - min(0.9995, 1 - 1 / (step + 1))
        )
        losses.append(loss.item())
        now = time.monotonic()
        state["seconds"] += min(now - clock, 10.0)  # a suspended process does not age
        clock = now
        state["step"] += 1
        if state["step"] % 200 == 0:
            state["loss"] = float(np.mean(losses))
            losses.clear()
            print(
                f"transformer step {state['step']} {progress:6.1%} loss {state['loss']:.4f} "
                f"{state['seconds'] / 60:.1f} min",
                flush=True,
            )
        if state["step"] % 1000 == 0:
            save()
    save()
    for own, averaged in zip(parameters, ema, strict=True):
        own.data.copy_(averaged)
    return untie(model).eval(), state


def untie(model: DiTTransformer2DModel) -> DiTTransformer2DModel:
    """A stock model with the shared embedder copied into every block, as diffusers expects."""
    stock = new_transformer()
    stock.load_state_dict(model.state_dict())
    return stock


def judge(
    pipeline: DiTPipeline,
    classifier: DigitClassifier,
    reference: dict[str, Tensor],
    num_images: int,
) -> dict[str, float]:
    """The share of samples read as the class that was asked for, and their FID."""
    pipeline.set_progress_bar_config(disable=True)
    features, right = [], 0
    for start in range(0, num_images, 100):
        asked = [i % NUM_CLASSES for i in range(start, min(start + 100, num_images))]
        images = pipeline(
            asked,
            guidance_scale=GUIDANCE_SCALE,
            generator=torch.Generator().manual_seed(9000 + start),
            num_inference_steps=NUM_INFERENCE_STEPS,
            output_type="np",
        ).images
        grey = torch.from_numpy(images).permute(0, 3, 1, 2)
        right += (predict(classifier, grey) == torch.tensor(asked)).sum().item()
        with torch.no_grad():
            features.append(classifier.features(grey))
    return {
        "read_as_asked": right / num_images,
        "fid": frechet_distance(reference, torch.cat(features)).value,
    }


CARD = """---
license: apache-2.0
library_name: diffusers
pipeline_tag: text-to-image
tags: [diffusion, DiT, mnist, class-conditional]
---
# A small class-conditional DiT of handwritten digits

A stock diffusers `DiTPipeline`, trained to have a real trained diffusion transformer at hand that
prunes in seconds. Made by `examples/train_bundled_model.py`; it draws MNIST-like digits and is of
no other use.

| | |
|---|---|
| data | {data}: {num_train:,} training images, padded to 32×32, grey; {num_test:,} test images |
| denoiser | DiTTransformer2DModel, {num_layers} blocks of width {width}, {num_parameters:,} parameters, float16 |
| latents | 4×8×8 of an AutoencoderKL with {vae_parameters:,} parameters; patch 2, so 16 tokens |
| training | {steps:,} steps of {batch_size}, AdamW, learning rate 1e-3 falling to 0, bfloat16 autocast, moving average 0.9995, label dropout 0.1, {minutes:.0f} minutes on two CPU cores |
| objective | velocity, 1,000 steps, linear schedule; mean loss of the last 200 steps {loss:.4f} |
| classifier | {classifier_accuracy:.2%} of the test images right; its 64 features give the FID below |
| **samples** | **{read_as_asked:.1%} of {samples:,} read as the class asked for**; FID {fid:.2f} to the test images (DDIM, {num_inference_steps} steps, guidance {guidance_scale}) |

The embedder of timestep and class is one module in training and is copied into every block, as
diffusers expects. Classes 0–9 are the digits; class 1000 is "none", for guidance; the rest were
never trained. The FID is in the features of the bundled classifier, not of InceptionV3.
"""


def forget_paths(folder: Path) -> None:
    """diffusers writes into a config where its model was loaded from; nobody needs to know."""
    for file in folder.rglob("config.json"):
        config = json.loads(file.read_text(encoding="utf-8"))
        config.pop("_name_or_path", None)
        file.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def write_card(folder: Path, facts: dict[str, object]) -> None:
    """The model card, beside the weights."""
    (folder / "README.md").write_text(CARD.format(**facts), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=100, help="time for the DiT")
    parser.add_argument("--num-steps", type=int, default=60_000, help="steps for the DiT")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--vae-steps", type=int, default=4000)
    parser.add_argument("--classifier-epochs", type=int, default=6)
    parser.add_argument("--num-images", type=int, default=1000, help="samples to judge")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)

    data = load_images(args.data)
    classifier = train_classifier(args.out, data, args.classifier_epochs)
    with torch.no_grad():
        features = torch.cat([classifier.features(batch) for batch in data[2].split(500)])
    reference = moments(features)
    save_file(reference, args.out / "reference.safetensors")
    vae = train_autoencoder(args.out, data[0], args.vae_steps)
    latents = cached_latents(args.out, vae, data[0])
    transformer, state = train_transformer(
        args.out, latents, data[1], args.num_steps, args.batch_size, args.minutes
    )
    pipeline = DiTPipeline(
        transformer, vae, DDIMScheduler(clip_sample=False, prediction_type=PREDICTION)
    )
    pipeline.register_to_config(id2label={str(i): str(i) for i in range(NUM_CLASSES)})
    pipeline.to(torch.float16).save_pretrained(args.out / "pipeline")
    forget_paths(args.out / "pipeline")
    pipeline = DiTPipeline.from_pretrained(args.out / "pipeline")
    right = predict(classifier, data[2]) == data[3]
    facts = {
        "data": args.data.name,
        "num_train": len(data[0]),
        "num_test": len(data[2]),
        "num_layers": transformer.config.num_layers,
        "width": transformer.inner_dim,
        "num_parameters": pipeline.transformer.num_parameters(),
        "vae_parameters": vae.num_parameters(),
        "steps": state["step"],
        "batch_size": args.batch_size,
        "minutes": state["seconds"] / 60,
        "loss": state["loss"],
        "classifier_accuracy": right.float().mean().item(),
        "samples": args.num_images,
        "num_inference_steps": NUM_INFERENCE_STEPS,
        "guidance_scale": GUIDANCE_SCALE,
        **judge(pipeline, classifier, reference, args.num_images),
    }
    write_card(args.out / "pipeline", facts)
    (args.out / "reached.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(facts, indent=1))


if __name__ == "__main__":
    main()
