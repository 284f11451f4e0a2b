"""Claim: a denoiser pruned at random runs faster sparse than dense on the CPU.

    python bench/kernel.py            # everything; some minutes on an idle machine
    python bench/kernel.py layers     # or: bundled, dit-256, dit-512, pixart
    python bench/kernel.py --cpu-time # on a busy machine: one thread, and its own time only
    python bench/kernel.py dit-512 --repeats=10

Bars, float32 over torch's dense float32 in the same run: a DiT-XL/2 step (256² and 512², batch 2
for guidance) ≥ 1.5× at 50 % and ≥ 2.2× at 70 %, a PixArt-Σ step ≥ 1.4× at 50 %, the bundled
model's sample faster than dense; swapped layers ≤ 0.8× the bytes at 50 %. Weights are random, their
zeros at random places. bfloat16 is shown beside. Runs alternate and the best of each counts,
as other work on the machine only ever makes a run slower.
"""

from __future__ import annotations

import copy
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import diffusers
import torch
import torch.nn.functional as F  # noqa: N812
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import ditprune
from ditprune.bundled import PIPELINE
from ditprune.runtime import Decision, build, desparsify_, sparsify_
from ditprune.runtime.kernel_call import multiply
from ditprune.runtime.packed import pack
from ditprune.targets.discover import discover

SPARSITIES = (0.5, 0.7)
LAYERS = {  # (tokens, C_in, C_out)
    "DiT-XL/2 256², attention": (512, 1152, 1152),
    "DiT-XL/2 256², MLP in": (512, 1152, 4608),
    "DiT-XL/2 256², MLP out": (512, 4608, 1152),
    "DiT-XL/2 512², MLP in": (2048, 1152, 4608),
    "DiT-XL/2, modulation": (2, 1152, 6912),
    "FLUX 1024², MLP in": (1536, 3072, 12288),
    "FLUX 1024², MLP out": (1536, 12288, 3072),
    "FLUX, modulation": (1, 3072, 18432),
}
BATCH = 2
CPU_TIME, REPEATS = "--cpu-time", "--repeats="
clock = time.thread_time if CPU_TIME in sys.argv else time.perf_counter
console = Console(highlight=False, soft_wrap=True, width=160)


def best_seconds(works: list[Callable[[], Any]], repeats: int) -> list[float]:
    """The fastest of some runs of each, taken in turn."""
    best = [float("inf")] * len(works)
    for _ in range(repeats):
        for i, work in enumerate(works):
            start = clock()
            work()
            best[i] = min(best[i], clock() - start)
    return best


@torch.no_grad()
def bench_layers() -> None:
    """Single layers: packed weights in either dtype against both dense ones."""
    columns = ("dense ms", "sparse ms", "ratio", "bf16 dense ms", "bf16 sparse ms", "ratio")
    table = Table("layer", "tokens × in → out", "zeros", *columns, box=None)
    for name, (num_tokens, num_in, num_out) in LAYERS.items():
        for sparsity in SPARSITIES:
            inputs, weight = torch.randn(num_tokens, num_in), torch.randn(num_out, num_in)
            weight[torch.rand(weight.shape) < sparsity] = 0
            works = []
            for dtype in (torch.float32, torch.bfloat16):
                own_inputs, own_weight = inputs.to(dtype), weight.to(dtype)
                is_paired = (
                    dtype == torch.bfloat16 and num_tokens > 8 and build.machine_takes_pairs()
                )
                packed = pack(own_weight, is_paired)
                works += [
                    lambda x=own_inputs, w=own_weight: F.linear(x, w),
                    lambda x=own_inputs, p=packed, n=num_out: multiply(x, p, n),
                ]
            times = best_seconds(works, 8)
            row = [f"{1000 * seconds:.2f}" for seconds in times]
            table.add_row(
                name, f"{num_tokens} × {num_in} → {num_out}", f"{sparsity:.0%}",
                *row[:2], f"{times[0] / times[1]:.2f}×", *row[2:], f"{times[2] / times[3]:.2f}×",
            )  # fmt: skip
    console.print(table)


def dit_xl(size: int) -> tuple[nn.Module, dict[str, Any]]:
    """DiT-XL/2 for images of `size` pixels, and one guided step."""
    side = size // 8
    denoiser = diffusers.DiTTransformer2DModel(
        num_attention_heads=16, attention_head_dim=72, num_layers=28, in_channels=4,
        out_channels=8, sample_size=side,
    )  # fmt: skip
    return denoiser.eval(), {
        "hidden_states": torch.randn(BATCH, 4, side, side),
        "timestep": torch.tensor([500] * BATCH),
        "class_labels": torch.tensor([1, 1000]),
    }


def pixart_sigma(size: int) -> tuple[nn.Module, dict[str, Any]]:
    """PixArt-Σ for images of `size` pixels with prompts of 300 tokens, and one guided step."""
    side = size // 8
    denoiser = diffusers.PixArtTransformer2DModel(
        sample_size=side, caption_channels=4096, use_additional_conditions=False
    )
    return denoiser.eval(), {
        "hidden_states": torch.randn(BATCH, 4, side, side),
        "encoder_hidden_states": torch.randn(BATCH, 300, 4096),
        "timestep": torch.tensor([500] * BATCH),
        "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
    }


@torch.no_grad()
def prune_at_random_(denoiser: nn.Module, sparsity: float) -> None:
    for name in discover(denoiser):
        weight = denoiser.get_parameter(f"{name}.weight")
        weight[torch.rand(weight.shape) < sparsity] = 0


STEPS = {
    "dit-256": ("DiT-XL/2 256²", dit_xl, 256, {0.5: 1.5, 0.7: 2.2}),
    "dit-512": ("DiT-XL/2 512²", dit_xl, 512, {0.5: 1.5, 0.7: 2.2}),
    "pixart": ("PixArt-Σ 256²", pixart_sigma, 256, {0.5: 1.4}),
}


def in_dtype(call: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    return {
        name: value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value
        for name, value in call.items()
    }


@torch.no_grad()
def bench_step(part: str, repeats: int) -> None:
    """A whole denoiser step in float32 and in bfloat16, each dense and sparse."""
    columns = (
        *("dense s", "sparse s", "ratio", "bar", "bf16 dense s", "bf16 sparse s", "ratio"),
        *("swapped", "bytes"),
    )
    table = Table("denoiser", "zeros", *columns, "difference", box=None)
    name, make, size, bars = STEPS[part]
    for sparsity, bar in bars.items():
        torch.manual_seed(0)
        sparse, call = make(size)
        prune_at_random_(sparse, sparsity)
        dense, half = make(size)[0], make(size)[0].bfloat16()
        dense.load_state_dict(sparse.state_dict())
        half.load_state_dict(sparse.state_dict())
        decisions = sparsify_(sparse, call)
        half_call = in_dtype(call, torch.bfloat16)
        sparse_half = copy.deepcopy(half)
        half_decisions = sparsify_(sparse_half, half_call)
        difference = (dense(**call).sample - sparse(**call).sample).abs().amax()
        works = [
            lambda: dense(**call), lambda: sparse(**call),  # noqa: B023
            lambda: half(**half_call), lambda: sparse_half(**half_call),  # noqa: B023
        ]  # fmt: skip
        times = best_seconds(works, repeats)
        swapped = [one for one in decisions.values() if one.is_swapped]
        dense_bytes = sum(4 * c.shape[0] * c.shape[1] for c in swapped)
        table.add_row(
            name, f"{sparsity:.0%}", f"{times[0]:.2f}", f"{times[1]:.2f}",
            f"{times[0] / times[1]:.2f}×", f"≥ {bar}×", f"{times[2]:.2f}",
            f"{times[3]:.2f}", f"{times[2] / times[3]:.2f}×",
            f"{len(swapped)} and {num_swapped(half_decisions)} of {len(decisions)}",
            f"{sum(c.size_bytes for c in swapped) / dense_bytes:.2f}×" if swapped else "–",
            f"{difference:.0e}",
        )  # fmt: skip
    console.print(table)


def num_swapped(decisions: dict[str, Decision]) -> int:
    return sum(one.is_swapped for one in decisions.values())


@torch.no_grad()
def bench_bundled(num_images: int = 16, num_steps: int = 10) -> None:
    """The bundled pipeline's sample, pruned at random and swapped by its own measurements."""
    table = Table("bundled pipeline", "zeros", "dense s", "sparse s", "ratio", "swapped", box=None)
    for sparsity in SPARSITIES:
        pipelines = [diffusers.DiTPipeline.from_pretrained(PIPELINE) for _ in range(2)]
        for pipeline in pipelines:
            pipeline.set_progress_bar_config(disable=True)
            ditprune.prune_(pipeline.transformer, saliency="magnitude", sparsity=sparsity)
        call = {
            "hidden_states": torch.randn(2 * num_images, 4, 8, 8),
            "timestep": torch.tensor([500] * 2 * num_images),
            "class_labels": torch.tensor([1] * 2 * num_images),
        }
        decisions = sparsify_(pipelines[1].transformer, call)
        labels = [i % 10 for i in range(num_images)]
        times = best_seconds(
            [
                lambda p=p: p(labels, num_inference_steps=num_steps, output_type="np")  # noqa: B023
                for p in pipelines
            ],
            6,
        )
        table.add_row(
            f"{num_images} images, {num_steps} steps", f"{sparsity:.0%}", f"{times[0]:.2f}",
            f"{times[1]:.2f}", f"{times[0] / times[1]:.2f}×",
            f"{num_swapped(decisions)} of {len(decisions)}",
        )  # fmt: skip
        desparsify_(pipelines[1].transformer)
    console.print(table)


def main() -> None:
    flags = [word for word in sys.argv[1:] if word.startswith("--")]
    repeats = [int(flag.removeprefix(REPEATS)) for flag in flags if flag.startswith(REPEATS)]
    parts: dict[str, Callable[[], None]] = {"layers": bench_layers, "bundled": bench_bundled}
    parts |= {part: partial(bench_step, part, max(repeats, default=3)) for part in STEPS}
    if CPU_TIME in flags:
        torch.set_num_threads(1)
    for name in [word for word in sys.argv[1:] if word not in flags] or parts:
        parts[name]()
    threads = f"{torch.get_num_threads()} threads, torch {torch.__version__}"
    console.print(f"{build.instruction_set()}, {threads}")


if __name__ == "__main__":
    main()
