"""Claim: observing the inputs of every target costs ≤ 10 % over the plain forward passes.

    python bench/calibration.py

The bundled model on 128 samples, and blocks of DiT-XL/2 and PixArt-Σ at their own width (random
weights, fewer blocks: the cost per block is what counts). Plain and observed passes alternate in
the same run; the median of the paired ratios is reported.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial

import diffusers
import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from ditprune.calibration.observe import norms, observing
from ditprune.calibration.sample import Sampling, sample_calls
from ditprune.calls import NUM_BINS, Call
from ditprune.checkpoints.locate import locate
from ditprune.denoiser.pipeline import load_pipeline
from ditprune.denoiser.replay import run_call
from ditprune.targets.discover import discover

ROUNDS = 15


def cases() -> Iterator[tuple[str, nn.Module, list[Call]]]:
    """Denoisers with calls to run."""
    pipeline = load_pipeline(locate("bundled"))
    sampling = Sampling(num_inference_steps=25, guidance_scale=1.5)
    yield "bundled", pipeline.transformer, sample_calls(pipeline, sampling)

    torch.manual_seed(0)
    dit = diffusers.DiTTransformer2DModel(
        num_attention_heads=16, attention_head_dim=72, num_layers=3, sample_size=32
    )
    noisy, step = torch.randn(2, 4, 32, 32), torch.tensor([500, 500])
    labels = torch.tensor([7, 1000])
    yield "DiT-XL/2 256², 3 blocks", dit, [
        Call((noisy,), {"timestep": step, "class_labels": labels})
    ]  # fmt: skip

    pixart = diffusers.PixArtTransformer2DModel(num_layers=3, sample_size=64, out_channels=8)
    text = torch.randn(2, 300, 1152 if pixart.config.caption_channels is None else 4096)
    pixart.config.use_additional_conditions = False
    yield "PixArt-Σ 512², 3 blocks", pixart, [
        Call(
            (torch.randn(2, 4, 64, 64),),
            {"encoder_hidden_states": text, "timestep": step,
             "added_cond_kwargs": {"resolution": None, "aspect_ratio": None}},
        )
    ]  # fmt: skip


def seconds(run: Callable[[Call], object], calls: list[Call]) -> float:
    """One pass over all calls."""
    start = time.perf_counter()
    for call in calls:
        run(call)
    return time.perf_counter() - start


def main() -> None:
    table = Table("denoiser", "plain s", "observed s", "overhead", box=None)
    for name, denoiser, calls in cases():
        targets = discover(denoiser)
        plain, observed = [], []
        run_plain = partial(run_call, denoiser)
        seconds(run_plain, calls)
        for _ in range(ROUNDS):
            plain.append(seconds(run_plain, calls))
            with observing(denoiser, targets, norms(NUM_BINS)) as observation:
                observed.append(seconds(observation.run, calls))
        ratio = statistics.median(o / p for o, p in zip(observed, plain, strict=True))
        table.add_row(
            name, f"{statistics.median(plain):.3f}", f"{statistics.median(observed):.3f}",
            f"{ratio - 1:+.1%}",
        )  # fmt: skip
    console = Console(highlight=False, soft_wrap=True)
    console.print(table)
    console.print(f"{torch.get_num_threads()} threads, torch {torch.__version__}, {ROUNDS} rounds")


if __name__ == "__main__":
    main()
