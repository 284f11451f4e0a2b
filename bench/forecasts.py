"""Claim: what `fast` and `best` take for models that people own, on a GPU of a stated rate.

python bench/forecasts.py [TFLOP/s]
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from diffusers import FluxTransformer2DModel, PixArtTransformer2DModel
from torch import Tensor, nn

from ditprune.calls import Call
from ditprune.method.words import build
from ditprune.pruning.forecast_blocks import Setting, forecast_blocks
from ditprune.pruning.rates import DEFAULT_GPU_RATE, stated_rates
from ditprune.pruning.row_cost import row_cost
from ditprune.targets.discover import discover

ROWS, ITEMSIZE = 128, 2  # of calibration calls; bytes of bfloat16
RECIPES: dict[str, dict[str, Any]] = {
    "fast": {"preset": "fast"},
    "fast 2:4": {"preset": "fast", "pattern": "2:4"},
    "best without tail": {"preset": "best", "tail": "none"},
}


def empty(*shape: int) -> Tensor:
    return torch.empty(shape, device="meta")


def flux(side: int) -> tuple[nn.Module, Call]:
    tokens = (side // 16) ** 2
    given = {
        "hidden_states": empty(1, tokens, 64),
        "encoder_hidden_states": empty(1, 512, 4096),
        "pooled_projections": empty(1, 768),
        "timestep": empty(1),
        "guidance": empty(1),
        "img_ids": empty(tokens, 3),
        "txt_ids": empty(512, 3),
    }
    return FluxTransformer2DModel(guidance_embeds=True), Call((), given)


def pixart(side: int) -> tuple[nn.Module, Call]:
    model = PixArtTransformer2DModel(
        sample_size=side // 8, caption_channels=4096, use_additional_conditions=False
    )
    given = {
        "hidden_states": empty(1, 4, side // 8, side // 8),
        "encoder_hidden_states": empty(1, 300, 4096),
        "timestep": empty(1),
        "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
    }
    return model, Call((), given)


def main() -> None:
    rate = float(sys.argv[1]) if len(sys.argv) > 1 else DEFAULT_GPU_RATE
    print(f"{ROWS} rows, bfloat16 forwards, {rate:g} TFLOP/s")
    print("| model | recipe | hours | rows for gradients | device | states | disk, least |")
    print("|---|---|---|---|---|---|---|")
    for name, make, side in (
        ("FLUX.1-dev 1024²", flux, 1024),
        ("FLUX.1-dev 512²", flux, 512),
        ("PixArt-Σ 1024²", pixart, 1024),
    ):
        with torch.device("meta"):
            denoiser, call = make(side)
        targets = discover(denoiser)
        row = row_cost(denoiser, targets, call)
        count = sum(parameter.numel() for parameter in denoiser.parameters())
        setting = Setting(ROWS, 1, count, ITEMSIZE)
        for label, words in RECIPES.items():
            told = forecast_blocks(targets, build(**words), row, setting)
            hours = sum(told.seconds(stated_rates(rate)).values()) / 3600
            sizes = (max(told.device_bytes.values()), told.states_bytes, told.trace_bytes)
            shown = " | ".join(f"{size / 1e9:.1f} GB" for size in sizes)
            least = f"{told.least_trace_bytes / 1e9:.0f} GB"
            print(f"| {name} | {label} | {hours:.2f} | {told.num_rows} | {shown}, {least} |")


if __name__ == "__main__":
    main()
