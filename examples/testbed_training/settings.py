"""The sizes of the models, the options of a run and what a drawing must be told."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

LATENT_CHANNELS = 4
LATENT_SIZE = 16  # 64 pixels by an autoencoder of factor 4
TEXT_LENGTH = 32  # tokens of every caption, padded, in training and in drawing
CAPTION_DROPOUT = 0.1  # captions trained as "", for guidance
PARAPHRASES = 8  # captions kept of every scene

DRAWING: dict[str, dict[str, object]] = {
    "pixart": {
        "height": 64,
        "width": 64,
        "max_sequence_length": TEXT_LENGTH,
        "use_resolution_binning": False,
        "num_inference_steps": 20,
        "guidance_scale": 4.0,
    },
    "flux": {
        "height": 64,
        "width": 64,
        "max_sequence_length": TEXT_LENGTH,
        "num_inference_steps": 20,
        "negative_prompt": "",
        "true_cfg_scale": 3.0,
    },
}


@dataclass(frozen=True)
class Size:
    """How large every model is."""

    heads: int = 6
    head_width: int = 32
    pixart_blocks: int = 10
    double_blocks: int = 3
    single_blocks: int = 5
    rope: tuple[int, int, int] = (4, 14, 14)
    t5_width: int = 192
    t5_heads: int = 6
    t5_inner: int = 384
    t5_layers: int = 4
    clip_width: int = 128
    clip_layers: int = 2
    autoencoder: tuple[int, int, int] = (32, 64, 64)

    @property
    def width(self) -> int:
        return self.heads * self.head_width


SIZES = {
    "small": Size(),
    "tiny": Size(
        heads=2,
        head_width=16,
        pixart_blocks=2,
        double_blocks=1,
        single_blocks=1,
        rope=(4, 6, 6),
        t5_width=32,
        t5_heads=2,
        t5_inner=64,
        t5_layers=1,
        clip_width=32,
        clip_layers=1,
        autoencoder=(8, 8, 8),
    ),
}


@dataclass(frozen=True)
class Settings:
    """What one stage of training is told. It ends at `num_steps` or after `minutes`."""

    out: Path
    runs: Path
    device: str = "cpu"
    num_scenes: int = 300_000
    workers: int = 1
    num_steps: int = 1_000_000
    minutes: float = 60
    batch_size: int = 512
    rate: float = 1e-3
    nested_share: float = 0.0
    warmup: int = 300
    average: float = 0.999
    save_minutes: float = 2
    compile: bool = False
    autocast: bool = True  # bfloat16 on a GPU
    start: Path | None = None  # a bed to begin from, where there is no checkpoint
    size: Size = SIZES["small"]
