"""Claim: a FLUX.1-dev-sized folder is pruned in ≤ 2.5 times a plain copy and ≤ 2 GB, linearly.

    python bench/streaming.py --size 1B 3B 12B --folder /some/fast/disk

For each size: makes a checkpoint of FLUX.1-dev's configuration (fewer blocks for the smaller) with
random bf16 weights in shards as on the hub, and statistics. Then, in turn and three times, it takes
the wall time of `cp` and `sync` of its files, and of `ditprune prune` at 50 % as a process of its
own, with its processor time and its peak resident memory; medians are shown. Beside the rest stands
what `--dry-run` had estimated. 12B takes 49 GB under --folder; nothing stays there.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist, median
from typing import Any, BinaryIO

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from ditprune.checkpoints.skeleton import skeleton, weight_fingerprints
from ditprune.checkpoints.statistics_file import Statistics, save_statistics
from ditprune.checkpoints.weights import Weights
from ditprune.method.statistics.column_norm import ColumnNorm
from ditprune.targets.discover import discover
from ditprune.writing.files import MANIFEST

# Double-stream and single-stream blocks; 12B is FLUX.1-dev.
BLOCKS = {"1B": (2, 3), "3B": (5, 10), "6B": (10, 19), "12B": (19, 38)}
CONFIG = {
    "_class_name": "FluxTransformer2DModel", "attention_head_dim": 128, "num_attention_heads": 24,
    "in_channels": 64, "joint_attention_dim": 4096, "pooled_projection_dim": 768,
    "patch_size": 1, "guidance_embeds": True,
}  # fmt: skip
OURS = {MANIFEST, "README.md"}
SHARD_BYTES, STEM = 5_000_000_000, "diffusion_pytorch_model"
SPREAD_ROWS = re.compile(r"norm\w*\.linear\.weight$")  # modulation: rows differ in scale

Shapes = dict[str, tuple[int, ...]]


def make_checkpoint(folder: Path, size: str) -> None:
    """A denoiser folder with random weights; the same bytes each time."""
    folder.mkdir()
    num_double, num_single = BLOCKS[size]
    config = CONFIG | {"num_layers": num_double, "num_single_layers": num_single}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    shapes = {name: tuple(p.shape) for name, p in skeleton(folder).named_parameters()}
    shards = list(in_shards(shapes))
    draw, weight_map = np.random.Generator(np.random.SFC64(0)), {}
    for number, shard in enumerate(shards, start=1):
        name = f"{STEM}-{number:05d}-of-{len(shards):05d}.safetensors"
        weight_map |= dict.fromkeys(shard, name)
        with (folder / name).open("wb") as stream:
            write_shard(stream, shard, draw)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / f"{STEM}.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")


def in_shards(shapes: Shapes) -> Iterator[Shapes]:
    """The tensors in order, cut where a shard is full."""
    shard: Shapes = {}
    for name, shape in shapes.items():
        if shard and 2 * sum(map(math.prod, (*shard.values(), shape))) > SHARD_BYTES:
            yield shard
            shard = {}
        shard[name] = shape
    yield shard


def write_shard(stream: BinaryIO, shapes: Shapes, draw: np.random.Generator) -> None:
    """One safetensors file of bf16 normals, block by block."""
    header, offset = {}, 0
    for name, shape in shapes.items():
        end = offset + 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    stream.write(len(text).to_bytes(8, "little") + text)
    for name, shape in shapes.items():
        table = quantiles(shape[-1] ** -0.5)
        rows = max(1, (1 << 22) // shape[-1])
        for first in range(0, shape[0], rows):
            block = (min(rows, shape[0] - first), *shape[1:])
            bits = table[np.frombuffer(draw.bytes(2 * math.prod(block)), np.uint16)].reshape(block)
            if SPREAD_ROWS.search(name):  # a step of the exponent is a factor of two
                bits += draw.integers(0, 4, (block[0], 1), np.uint16) << 7
            stream.write(bits.tobytes())


def quantiles(scale: float) -> np.ndarray[Any, np.dtype[np.uint16]]:
    """The normal of this deviation as 2¹⁶ equally likely bf16 bit patterns."""
    if "unit" not in _QUANTILES:
        inverse = NormalDist().inv_cdf
        _QUANTILES["unit"] = np.array([inverse((i + 0.5) / 65536) for i in range(65536)])
    values = torch.from_numpy(_QUANTILES["unit"] * scale).bfloat16()
    return values.view(torch.uint16).numpy()


_QUANTILES: dict[str, Any] = {}


def make_statistics(folder: Path, file: Path) -> None:
    """Statistics with random norms and the fingerprints of these weights."""
    targets = discover(skeleton(folder))
    draw = torch.Generator().manual_seed(0)
    norms = {
        name: ColumnNorm(
            torch.rand(1, target.shape[1], generator=draw, dtype=torch.float64) + 0.1, (1000,)
        )
        for name, target in targets.items()
    }
    prints = weight_fingerprints(Weights(folder), targets.values())
    save_statistics({"transformer": Statistics(norms, prints, 128)}, file)


def copy_seconds(source: Path, out: Path) -> float:
    """`cp -r` and `sync` of the same files; the copy is removed."""
    start = time.perf_counter()
    subprocess.run(["cp", "-r", source, out], check=True)
    subprocess.run(["sync"], check=True)
    elapsed_s = time.perf_counter() - start
    subprocess.run(["rm", "-r", out], check=True)
    return elapsed_s


@dataclass(frozen=True)
class Run:
    """What one command took: wall seconds, processor seconds, peak bytes; and what it printed."""

    wall_s: float
    core_s: float
    peak_bytes: int
    printed: str


def run(*args: object, cwd: Path) -> Run:
    """One `ditprune` command, in a process of its own."""
    command = [sys.executable, "-m", "ditprune", *map(str, args)]
    start = time.perf_counter()
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=cwd
    )
    assert process.stdout is not None
    printed = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)}: exit code {process.returncode}")
    elapsed_s = time.perf_counter() - start
    return Run(elapsed_s, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024, printed)


def measure(size: str, place: Path, num_rounds: int, table: Table) -> None:
    """One row of the table."""
    folder, statistics, out = place / size, place / f"{size}.safetensors", place / f"{size}-out"
    make_checkpoint(folder, size)
    make_statistics(folder, statistics)
    num_parameters, num_bytes = Weights(folder).num_parameters, Weights(folder).size_bytes
    inspected = run("inspect", folder, "--statistics", statistics, "--json", cwd=place).printed
    estimate = json.loads(inspected)["estimate"]
    command = ["prune", folder, "-o", out, "--statistics", statistics, "--sparsity", 0.5]
    copies, runs = [], []
    for number in range(num_rounds):
        subprocess.run(["sync"], check=True)
        copies.append(copy_seconds(folder, out))
        runs.append(run(*command, cwd=place))
        files = [file for file in out.rglob("*") if file.is_file() and file.name not in OURS]
        written = sum(file.stat().st_size for file in files)
        assert written == estimate["num_bytes"], f"{written} bytes written"
        subprocess.run(["rm", "-r", out], check=True)
        print(
            f"{size} round {number}: cp {copies[-1]:.1f} s, {runs[-1].wall_s:.1f} s",
            file=sys.stderr,
        )
    copy_s, wall_s = median(copies), median(r.wall_s for r in runs)
    core_s, peak_bytes = median(r.core_s for r in runs), max(r.peak_bytes for r in runs)
    table.add_row(
        f"{num_parameters / 1e9:.2f} B", f"{num_bytes / 1e9:.2f}", f"{copy_s:.1f}",
        f"{wall_s:.1f}", f"{wall_s / copy_s:.1f}", f"{estimate['seconds']:.1f}", f"{core_s:.1f}",
        f"{core_s / num_parameters * 1e9:.1f}",
        f"{peak_bytes / 1e9:.2f}", f"{estimate['peak_bytes'] / 1e9:.2f}",
    )  # fmt: skip
    subprocess.run(["rm", "-r", folder, statistics], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--size", nargs="+", choices=BLOCKS, default=["1B"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    args = parser.parse_args()
    table = Table(
        "parameters", "GB", "cp + sync s", "prune s", "ratio", "estimated", "core s",
        "core s per B", "peak GB", "estimated", box=None,
    )  # fmt: skip
    with tempfile.TemporaryDirectory(dir=args.folder, prefix="ditprune-bench-") as place:
        for size in args.size:
            measure(size, Path(place), args.rounds, table)
    console = Console(highlight=False, soft_wrap=True, width=120)
    console.print(table)
    console.print(
        f"prune at 50 %, STW and CAG, {os.cpu_count()} cores with "
        f"{torch.backends.cpu.get_cpu_capability()}, medians of {args.rounds}; load average "
        f"{os.getloadavg()[0]:.1f}"
    )


if __name__ == "__main__":
    main()
