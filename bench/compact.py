"""Claim: packing and unpacking alone take ≥ 300 MB/s of dense weights on a core, and sizes hold.

    python bench/compact.py                          # packing alone, in memory
    python bench/compact.py --folder /some/fast/disk # and a folder of 1 GB, there and back

Bars: bfloat16 at 50 % ≤ 0.57 of the dense bytes, at 70 % ≤ 0.37, 2:4 ≤ 0.57. Zeros are at random
places, one thread, the best of several runs. For the folder (a DiT-XL/2 configuration with random
bfloat16 weights at 50 %): seconds of `cp` and `sync` of its files; of `convert` and back in
processes of their own, behind their imports, by the clock and by the processor, hashes, reading and
writing included; their peak resident memory; and the peak of loading the compact folder above the
same process before, beside the bytes of the model.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from ditprune import prune_
from ditprune.checkpoints.compact.head import Head
from ditprune.checkpoints.compact.mask_bits import compressed, nonzero_bits
from ditprune.checkpoints.compact.packing import pack_weight, smallest, unpack_weight
from ditprune.checkpoints.weights import Weights

SHAPE, REPEATS = (4608, 4608), 5
PATTERNS = ("50 %", "70 %", "2:4", "1:4", "4:8")
WORDS = {"BF16": np.uint16, "F32": np.uint32}
CONFIG = {"num_attention_heads": 16, "attention_head_dim": 72, "num_layers": 28, "sample_size": 32}
MEASURED = """
import sys, time, diffusers
from pathlib import Path
from ditprune.cli.main import run
diffusers.DiTTransformer2DModel
wall, own = time.monotonic(), time.process_time()
assert run(sys.argv[1:]) == 0
wall, own = time.monotonic() - wall, time.process_time() - own
peak = [l.split()[1] for l in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in l]
print(wall, own, peak[0])
"""
LOADING = """
import sys, torch, ditprune
from pathlib import Path
from diffusers import DiTTransformer2DModel
def peak():
    status = Path("/proc/self/status").read_text().splitlines()
    return int([line.split()[1] for line in status if "VmHWM" in line][0])
DiTTransformer2DModel.from_pretrained(sys.argv[2], torch_dtype=torch.bfloat16)
Path("/proc/self/clear_refs").write_text("5")
before = peak()
model = DiTTransformer2DModel.from_pretrained(sys.argv[1], torch_dtype=torch.bfloat16)
print(peak() - before, sum(p.numel() * p.element_size() for p in model.parameters()))
"""
console = Console(highlight=False, soft_wrap=True, width=140)


def weight(pattern: str, dtype: str) -> np.ndarray:
    """Random bits with zeros at random places."""
    generator = np.random.default_rng(0)
    words = generator.integers(1, 1 << 16, SHAPE[0] * SHAPE[1]).astype(WORDS[dtype])
    if "%" in pattern:
        words[generator.random(len(words)) < float(pattern[:-2]) / 100] = 0
        return words
    kept, size = map(int, pattern.split(":"))
    groups = words.reshape(-1, size)
    order = generator.random(groups.shape).argsort(axis=1)
    groups[order >= kept] = 0
    return words


def best_s(work: Callable[[], Any]) -> float:
    """Seconds of the fastest of several runs, of this thread alone."""
    seconds = []
    for _ in range(REPEATS):
        start = time.thread_time()
        work()
        seconds.append(time.thread_time() - start)
    return min(seconds)


def show_packing() -> None:
    table = Table("dtype", "pattern", "form", "of dense", "choose", "pack", "unpack", "mask bits")
    for dtype in WORDS:
        for pattern in PATTERNS:
            words = weight(pattern, dtype)
            raw = words.view(np.uint8).data
            head = smallest(raw, dtype, SHAPE)
            packed = pack_weight(raw, head)
            assert bytes(unpack_weight(packed, "w")[1]) == bytes(raw)
            rates = [raw.nbytes / 1e6 / best_s(work) for work in _works(raw, head, packed, dtype)]
            bits = 8 * len(compressed(nonzero_bits(raw, dtype))) / len(words)
            table.add_row(
                dtype, pattern, head.form, f"{head.size_bytes / raw.nbytes:.4f}",
                *(f"{rate:.0f}" for rate in rates), f"{bits:.3f}",
            )  # fmt: skip
    console.print("MB of dense weights a second, one thread; a mask's bits a weight")
    console.print(table)


def _works(
    raw: memoryview, head: Head, packed: memoryview, dtype: str
) -> tuple[Callable[[], Any], ...]:
    return (
        lambda: smallest(raw, dtype, SHAPE),
        lambda: pack_weight(raw, head),
        lambda: unpack_weight(packed, "w"),
    )


def make_folders(place: Path) -> Path:
    """A pruned denoiser, and a small one to load first."""
    from diffusers import DiTTransformer2DModel

    torch.manual_seed(0)
    for name, layers in (("dense", CONFIG["num_layers"]), ("warm", 1)):
        words = {**CONFIG, "num_layers": layers, "num_embeds_ada_norm": 1000}
        denoiser = DiTTransformer2DModel(in_channels=4, out_channels=8, patch_size=2, **words)
        prune_(denoiser.to(torch.bfloat16), saliency="magnitude", granularity="channel")
        denoiser.save_pretrained(place / name)
    return place / "dense"


def show_folder(place: Path) -> None:
    dense = make_folders(place)
    size_mb = Weights(dense).size_bytes / 1e6
    table = Table("", "s", "CPU s", "dense MB per CPU s", "peak MB")
    start = time.monotonic()
    subprocess.run(["cp", "-r", dense, place / "copy"], check=True)
    os.sync()
    copy_s = time.monotonic() - start
    table.add_row("cp + sync", f"{copy_s:.1f}", "", "", "")
    for source, to, out in (("dense", "compact", "small"), ("small", "dense", "again")):
        line = ["convert", str(place / source), "--to", to, "-o", str(place / out)]
        ran = subprocess.run(
            [sys.executable, "-c", MEASURED, *line], check=True, stdout=subprocess.PIPE, text=True
        )
        wall_s, cpu_s, peak_kb = map(float, ran.stdout.split()[-3:])
        table.add_row(
            f"to {to}", f"{wall_s:.1f}", f"{cpu_s:.1f}", f"{size_mb / cpu_s:.0f}",
            f"{peak_kb * 1.024e-3:.0f}",
        )  # fmt: skip
    console.print(table)
    small_mb = Weights(place / "small").size_bytes / 1e6
    same = all(
        (place / "again" / file.name).read_bytes() == file.read_bytes() for file in dense.iterdir()
    )
    console.print(f"{size_mb:.0f} MB → {small_mb:.0f} MB; the same bytes come back: {same}")
    line = [sys.executable, "-c", LOADING, str(place / "small"), str(place / "warm")]
    ran = subprocess.run(line, check=True, stdout=subprocess.PIPE, text=True)
    peak, model = map(int, ran.stdout.split())
    claims = json.loads((place / "small" / "ditprune-compact.json").read_text(encoding="utf-8"))
    largest = max(one["dense_bytes"] for one in claims["tensors"].values())
    console.print(
        f"loading: peak {peak * 1024 / 1e6:.0f} MB above before, the dense model takes "
        f"{model / 1e6:.0f} MB, its largest layer {largest / 1e6:.0f} MB"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    show_packing()
    if arguments.folder is not None:
        with tempfile.TemporaryDirectory(dir=arguments.folder) as place:
            show_folder(Path(place))


if __name__ == "__main__":
    main()
