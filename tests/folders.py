"""Small model folders on disk, and ways to look at them and to spoil them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

STEM = "diffusion_pytorch_model"


def save_denoiser(
    denoiser: nn.Module, folder: Path, dtype: torch.dtype = torch.float32, **options: Any
) -> Path:
    """A bare denoiser folder, written by diffusers."""
    denoiser.to(dtype).save_pretrained(folder, **options)
    return folder


def save_pipeline(
    denoiser: nn.Module, folder: Path, num_colours: int = 1, dtype: torch.dtype = torch.float32,
    **options: Any,
) -> Path:  # fmt: skip
    """A DiTPipeline folder around a denoiser: a tiny VAE, four labels."""
    from diffusers import AutoencoderKL, DDIMScheduler, DiTPipeline

    with torch.random.fork_rng():
        torch.manual_seed(0)
        vae = AutoencoderKL(
            in_channels=num_colours,
            out_channels=num_colours,
            block_out_channels=(8, 8),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            norm_num_groups=4,
            latent_channels=4,
            layers_per_block=1,
            sample_size=16,
        )
    pipeline = DiTPipeline(denoiser, vae, DDIMScheduler(clip_sample=False))
    pipeline.to(dtype=dtype).save_pretrained(folder, **options)
    labels = {str(i): str(i) for i in range(4)}
    edit_json(folder / "model_index.json", lambda index: index.update(id2label=labels))
    return folder


def save_one_block(folder: Path) -> Path:
    """A DiTPipeline folder of one small block, for verbs that are run many times."""
    from diffusers import DiTTransformer2DModel

    with torch.random.fork_rng():
        torch.manual_seed(0)
        denoiser = DiTTransformer2DModel(
            num_attention_heads=2, attention_head_dim=8, num_layers=1, in_channels=4,
            out_channels=4, sample_size=4, patch_size=2, num_embeds_ada_norm=1000,
        )  # fmt: skip
    return save_pipeline(denoiser, folder)


def add_denoiser(
    pipeline: Path, denoiser: nn.Module, name: str = "transformer_2", **options: Any
) -> Path:
    """Gives a pipeline folder one more denoiser component; its folder."""
    folder = save_denoiser(denoiser, pipeline / name, **options)
    edit_json(
        pipeline / "model_index.json",
        lambda index: index.update({name: ["diffusers", type(denoiser).__name__]}),
    )
    return folder


def files_of(folder: Path) -> dict[str, bytes]:
    """Every file below a folder with its bytes, by relative path; hidden ones too."""
    return {
        file.relative_to(folder).as_posix(): file.read_bytes()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


def tensors_on_disk(folder: Path) -> dict[str, Tensor]:
    """Every tensor of a folder's safetensors files, read by the library."""
    found: dict[str, Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        found |= load_file(file)
    return found


def shards_of(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


def edit_json(file: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change a JSON file in place."""
    content = json.loads(file.read_text(encoding="utf-8"))
    change(content)
    file.write_text(json.dumps(content, indent=1), encoding="utf-8")


def edit_tensors(file: Path, change: Callable[[dict[str, Tensor]], Any]) -> None:
    """Change the tensors of a safetensors file in place."""
    tensors = {name: tensor.clone() for name, tensor in load_file(file).items()}
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})


def edit_header(file: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change the header of a safetensors file, the data staying where it is in the file."""
    raw = file.read_bytes()
    size = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + size])
    change(header)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    file.write_bytes(len(text).to_bytes(8, "little") + text + raw[8 + size :])


class Payload:
    """Unpickling it makes a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return (open, (str(self.mark), "w"))
