"""What a trained stage leaves behind: an ordinary diffusers folder with its model card."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn

from .settings import DRAWING, PARAPHRASES, Settings

KINDS = {
    "pixart": ("PixArtSigmaPipeline", "velocity, 1,000 steps, linear schedule"),
    "flux": ("FluxPipeline", "flow matching, logit-normal noise levels (every fifth uniform)"),
}
CARD = """---
license: apache-2.0
library_name: diffusers
pipeline_tag: text-to-image
tags: [diffusion, ditprune]
---
# A small {name} of drawn scenes

A stock diffusers `{name}` of 64×64 pictures, trained so that pruning text-to-image transformers
can be studied where there is no GPU. It draws one to three flat shapes and is of no other use.
Made by `examples/train_testbeds.py`. Captions are as `testbeds/scenes.py` writes them.

What must be passed:

`pipeline(prompt, {options})`

| | |
|---|---|
| data | {scenes:,} drawn scenes of the split "train", up to {paraphrases} captions each, 10 % of them dropped |
| denoiser | {denoiser}, {blocks} blocks of width {width}, {parameters:,} parameters, float16 |
| latents | 4×16×16 of an AutoencoderKL with {vae_parameters:,} parameters, so 64 tokens of a picture |
| text | {text} |
| training | {steps:,} steps of {batch_size}, AdamW, learning rate {rate} falling to 0, bfloat16 autocast, moving average {average}, {hours:.3f} hours on one {device} |
| objective | {objective}; mean loss of the last steps {loss:.4f} |
{figures}"""


def compile_blocks(transformer: nn.Module) -> None:
    """Compile one block for all; where that fails, a block runs as it is."""
    torch._dynamo.config.suppress_errors = True
    blocks = [
        *transformer.transformer_blocks,
        *getattr(transformer, "single_transformer_blocks", []),
    ]
    for block in blocks:
        block.compile(dynamic=False)


def float_residual(*embedders: nn.Module) -> None:
    """Keep the stream of a transformer in float32 under autocast.

    The timestep, which is cast to the stream's type, is exact then, as it is in drawing. The
    stream is contiguous, so that a compiled first block is the same as the others.
    """

    def to_float(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return output.float().contiguous()

    for embedder in embedders:
        embedder.register_forward_hook(to_float)


def write_folder(
    bed: str, pipeline: DiffusionPipeline, state: dict[str, float], settings: Settings
) -> None:
    """Write the pipeline in float16 and its card, whole or not at all."""
    folder, beside = settings.out / bed, settings.out / f"{bed}.part"
    shutil.rmtree(beside, ignore_errors=True)
    for part in pipeline.components.values():
        if isinstance(part, nn.Module):
            nn.Module.to(part, "cpu", torch.float16)
    pipeline.save_pretrained(beside)
    tidy_configs(beside)
    facts = facts_of(bed, pipeline, state, settings)
    settings.runs.mkdir(parents=True, exist_ok=True)
    (settings.runs / f"{bed}.json").write_text(json.dumps(facts, indent=1) + "\n")
    write_card(beside, facts, {})
    shutil.rmtree(folder, ignore_errors=True)
    beside.rename(folder)
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    print(f"{bed}: {size / 1e6:.1f} MB in {folder}", flush=True)


def tidy_configs(folder: Path) -> None:
    """Drop the paths that models were loaded from, and ask for float32 of the text encoders.

    A text encoder is loaded in the type that its config names, a transformer in float32; a
    pipeline that is loaded without a word on types needs both to be the same.
    """
    for file in folder.rglob("config.json"):
        config = json.loads(file.read_text(encoding="utf-8"))
        config.pop("_name_or_path", None)
        if "dtype" in config:
            config["dtype"] = "float32"
        file.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def facts_of(
    bed: str, pipeline: DiffusionPipeline, state: dict[str, float], settings: Settings
) -> dict[str, object]:
    """What the card says of how a bed was trained."""
    config, parts = pipeline.transformer.config, pipeline.components
    encoders = [parts[k] for k in ("text_encoder", "text_encoder_2") if k in parts]
    text = " and ".join(
        f"{type(e).__name__} with {e.num_parameters():,} parameters" for e in encoders
    )
    on_gpu = settings.device == "cuda"
    return {
        "name": KINDS[bed][0],
        "options": ", ".join(f"{key}={value!r}" for key, value in DRAWING[bed].items()),
        "scenes": settings.num_scenes,
        "paraphrases": PARAPHRASES,
        "denoiser": type(pipeline.transformer).__name__,
        "blocks": config.num_layers + config.get("num_single_layers", 0),
        "width": config.num_attention_heads * config.attention_head_dim,
        "parameters": pipeline.transformer.num_parameters(),
        "vae_parameters": pipeline.vae.num_parameters(),
        "text": f"{text}; captions of 32 tokens",
        "steps": state["step"],
        "batch_size": settings.batch_size,
        "rate": settings.rate,
        "average": settings.average,
        "hours": state["seconds"] / 3600,
        "device": torch.cuda.get_device_name() if on_gpu else "CPU",
        "objective": KINDS[bed][1],
        "loss": state["loss"],
    }


def write_card(folder: Path, facts: dict[str, object], figures: dict[str, float]) -> None:
    """The model card, with a line for every figure that a judge gave."""
    lines = "".join(f"| {name} | {value:.1%} |\n" for name, value in figures.items())
    text = CARD.format(**facts, figures=lines)
    (folder / "README.md").write_text(text, encoding="utf-8")
