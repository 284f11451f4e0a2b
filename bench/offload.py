"""Claim: a denoiser four times larger than --max-memory is calibrated within that memory.

    python bench/offload.py [FOLDER]

Writes a DiT of more than 4 GB (float32, random weights) under FOLDER (the system's temporary one
by default; removed at the end) and runs `ditprune calibrate --max-memory 1GB` on a calibration set
of tiny latents, in a process of its own whose peak of resident memory the system measures. Linux
counts what the parent took before the start as the child's, so the model is written by another.
"""

from __future__ import annotations

import json
import multiprocessing
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import save_file

from ditprune.calls import Call
from ditprune.checkpoints.calibration_set import save_calibration_set
from ditprune.checkpoints.skeleton import skeleton
from ditprune.checkpoints.statistics_file import read_statistics_file

LIMIT = "1GB"
NUM_CALLS = 2
CONFIG = {
    "_class_name": "DiTTransformer2DModel", "_diffusers_version": "0.36.0",
    "num_attention_heads": 16, "attention_head_dim": 96, "num_layers": 26, "in_channels": 4,
    "out_channels": 4, "sample_size": 8, "patch_size": 2, "num_embeds_ada_norm": 10,
}  # fmt: skip
SHARD_BYTES = 500_000_000
MEASURED = """
import resource, sys
from pathlib import Path
from ditprune.cli.main import run
code = run(sys.argv[2:])
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
Path(sys.argv[1]).write_text(str(peak), encoding="utf-8")
sys.exit(code)
"""


def write_model(folder: Path) -> int:
    """A denoiser in shards, written tensor by tensor; its size in bytes."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG), encoding="utf-8")
    generator = torch.Generator().manual_seed(0)
    shard: dict[str, torch.Tensor] = {}
    weight_map: dict[str, str] = {}
    total = number = 0

    def flush() -> None:
        nonlocal number
        name = f"diffusion_pytorch_model-{number:05d}.safetensors"
        save_file(shard, folder / name, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(shard, name))
        shard.clear()
        number += 1

    for name, parameter in skeleton(folder).named_parameters():
        scale = parameter.shape[-1] ** -0.5 if parameter.ndim > 1 else 0.1
        shard[name] = scale * torch.randn(parameter.shape, generator=generator)
        total += shard[name].nbytes
        if sum(tensor.nbytes for tensor in shard.values()) > SHARD_BYTES:
            flush()
    flush()
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "diffusion_pytorch_model.safetensors.index.json").write_text(
        json.dumps(index), encoding="utf-8"
    )
    return total


def write_calls(folder: Path) -> None:
    """A calibration set of few calls, so that what is measured is the reading of weights."""
    generator = torch.Generator().manual_seed(0)
    calls = [
        Call(
            (torch.randn(1, 4, 8, 8, generator=generator),),
            {"timestep": torch.tensor([500]), "class_labels": torch.tensor([number])},
            (number + 0.5) / NUM_CALLS,
        )
        for number in range(NUM_CALLS)
    ]
    save_calibration_set(calls, {}, folder)


def main(place: Path) -> None:
    model, kept, out = place / "model", place / "set", place / "statistics"
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        size_bytes = pool.apply(write_model, (model,))
    write_calls(kept)
    begun = time.monotonic()
    command = ["calibrate", str(model), "-o", str(out), "--calibration-set", str(kept)]
    peak_file = place / "peak"
    subprocess.run(
        [sys.executable, "-c", MEASURED, str(peak_file), *command, "--max-memory", LIMIT],
        check=True,
    )
    elapsed_s = time.monotonic() - begun
    peak = int(peak_file.read_text(encoding="utf-8"))
    peak_bytes = peak if sys.platform == "darwin" else peak * 1024
    (statistics,) = read_statistics_file(out).values()
    assert statistics.num_calls == NUM_CALLS
    passes = max(statistics.num_inputs.values())
    print(
        f"limit {LIMIT}; weights {size_bytes / 1e9:.2f} GB; peak of the process "
        f"{peak_bytes / 1e9:.2f} GB\n"
        f"{passes} observed calls, each of which reads the weights once; those that look for "
        f"unused layers come on top; {elapsed_s:.0f} s in all"
    )
    if peak_bytes > 1e9:
        sys.exit("the peak is above the limit")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(dir=sys.argv[1] if len(sys.argv) > 1 else None) as folder:
        main(Path(folder))
