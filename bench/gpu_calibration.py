"""Stage 5 of `gpu.py`: what calibrating and selecting cost on the device."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import nn

import ditprune
from gpu_measure import Clock, Log, free, seconds

STAGE = 5
_FEW, _MANY = 2, 6
_ROW_S = 15.0


def tower(device: str, is_tiny: bool, dtype: torch.dtype = torch.bfloat16) -> nn.Module:
    """FluxTransformer2DModel with one double and one single block."""
    from diffusers import FluxTransformer2DModel

    small = {
        "num_attention_heads": 2, "attention_head_dim": 32, "joint_attention_dim": 64,
        "pooled_projection_dim": 32, "in_channels": 16, "axes_dims_rope": (8, 12, 12),
    }  # fmt: skip
    with torch.device(device):
        model = FluxTransformer2DModel(
            num_layers=1, num_single_layers=1, **(small if is_tiny else {})
        )
    return model.to(dtype).eval().requires_grad_(False)


def call(device: str, is_tiny: bool) -> dict[str, Any]:
    image, text, channels, joint, pooled = (
        (16, 8, 16, 64, 32) if is_tiny else (4096, 512, 64, 4096, 768)
    )
    draw = partial(torch.randn, device=device, dtype=torch.bfloat16)
    return {
        "hidden_states": draw(1, image, channels),
        "encoder_hidden_states": draw(1, text, joint),
        "pooled_projections": draw(1, pooled),
        "timestep": torch.full((1,), 0.5, device=device, dtype=torch.bfloat16),
        "img_ids": torch.zeros(image, 3, device=device),
        "txt_ids": torch.zeros(text, 3, device=device),
    }


@torch.no_grad()
def calibrating(device: str, is_tiny: bool) -> dict[str, Any]:
    """Milliseconds of one call without and with hooks, and what comes once."""
    free()
    denoiser = tower(device, is_tiny)
    calls = [call(device, is_tiny) for _ in range(_MANY)]

    def plain(number: int) -> None:
        for one in calls[:number]:
            denoiser(**one)

    plain(1)
    held_mb = _megabytes(device)
    plain_s = min(seconds(partial(plain, _MANY), device) for _ in range(2)) / _MANY
    plain_mb = _peak(device)
    calibrate = ditprune.calibrate
    seconds(partial(calibrate, denoiser, calls[:1]), device)
    free()
    few_s = seconds(partial(calibrate, denoiser, calls[:_FEW]), device)
    many_s = seconds(partial(calibrate, denoiser, calls), device)
    hooked_s = (many_s - few_s) / (_MANY - _FEW)
    return {
        "plain_ms": 1e3 * plain_s, "hooked_ms": 1e3 * hooked_s, "ratio": hooked_s / plain_s,
        "once_s": few_s - _FEW * hooked_s, "held_mb": held_mb, "plain_peak_mb": plain_mb,
        "peak_mb": _peak(device),
    }  # fmt: skip


def pruning(words: dict[str, Any], device: str, is_tiny: bool) -> dict[str, Any]:
    """Seconds to prune that tower, with statistics of one call."""
    free()
    denoiser = tower(device, is_tiny)
    stats = ditprune.calibrate(denoiser, [call(device, is_tiny)])
    numbers = sum(one.numel() for one in denoiser.parameters())
    took_s = seconds(lambda: ditprune.prune_(denoiser, stats, **words), device)
    return {"prune_s": took_s, "parameters": numbers, "peak_mb": _peak(device)}


class _Block(nn.Module):
    """What discovery takes for a block: Linears, one named as attention names its."""

    def __init__(self, num_in: int, num_out: int) -> None:
        super().__init__()
        self.to_q = nn.Linear(num_in, num_out, bias=False)
        self.to_out = nn.Linear(num_out, 64, bias=False)


def selecting(
    words: dict[str, Any], dtype: torch.dtype, device: str, is_tiny: bool
) -> dict[str, Any]:
    """Seconds to select in one weight of 12288×3072 by its magnitude."""
    free()
    num_in, num_out = (64, 128) if is_tiny else (3072, 12288)

    def model() -> nn.Module:
        with torch.device(device):
            return nn.Sequential(nn.ModuleList([_Block(num_in, num_out)])).to(dtype)

    given = {"saliency": "magnitude", "include": "*to_q", **words}
    ditprune.prune_(model(), **given)
    models = [model() for _ in range(3)]
    times = [seconds(lambda one=one: ditprune.prune_(one, **given), device) for one in models]
    zeros = (models[0][0][0].to_q.weight == 0).float().mean().item()
    return {"select_ms": 1e3 * min(times), "zeros": zeros, "peak_mb": _peak(device)}


def _megabytes(device: str) -> float | None:
    return torch.cuda.memory_allocated() / 1e6 if device.startswith("cuda") else None


def _peak(device: str) -> float | None:
    return torch.cuda.max_memory_allocated() / 1e6 if device.startswith("cuda") else None


def run(log: Log, clock: Clock, device: str, is_tiny: bool) -> None:
    def row(name: str, work: Any) -> None:
        log.row(STAGE, name, work, min(_ROW_S, clock.left_s))

    row("calibrate", partial(calibrating, device, is_tiny))
    ways: dict[str, dict[str, Any]] = {
        "layer": {"granularity": "layer"}, "channel": {"granularity": "channel"},
        "cag": {}, "2:4": {"pattern": "2:4"},
    }  # fmt: skip
    for dtype in (torch.bfloat16, torch.float32):
        for way, words in ways.items():
            name = f"select {way} {str(dtype).removeprefix('torch.')}"
            row(name, partial(selecting, words, dtype, device, is_tiny))
    row("prune the tower, stw", partial(pruning, {}, device, is_tiny))
    row("prune the tower, stw 2:4", partial(pruning, {"pattern": "2:4"}, device, is_tiny))
