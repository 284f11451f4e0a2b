"""Does pruning pay on this machine? A model's own shapes are timed, dense and sparse.

Layers are read from the files one at a time, so that a model of any size can be timed. A whole step
needs several copies of the denoiser, and is timed if they fit into memory.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from ditprune.calibration.sample import Sampling
from ditprune.calls import Call
from ditprune.checkpoints.locate import ModelFolder
from ditprune.denoiser.placement import Placement
from ditprune.errors import KernelError, RecipeError
from ditprune.method import numbers
from ditprune.progress import Progress, silent
from ditprune.runtime import build
from ditprune.runtime.backends import BACKENDS, Backend, backend_of
from ditprune.runtime.bench.free_memory import free_bytes
from ditprune.runtime.bench.layer_times import DENSE, SPARSE, bench_layers, verdict_of
from ditprune.runtime.bench.step_times import bench_step
from ditprune.runtime.bench.timed_layers import (
    NumTokens,
    TimedLayers,
    check_zeros,
    find_timed_layers,
    first_calls,
    trial_of,
)
from ditprune.targets.blocks import Globs
from ditprune.writing.files import installed_versions, is_compact

_NUM_MODULATION_ROWS = 2  # one image under guidance
_NO_GPU_KERNEL = (
    "4:8 and unstructured zeros have no GPU kernel: on a GPU only 2:4 can be faster, in float16 or "
    "bfloat16"
)


@dataclass(frozen=True)
class BenchOptions:
    """What is timed.

    Args:
        sparsity, pattern: how to prune a dense model by magnitude in memory.
        num_tokens: of each layer but modulation; None takes them from a real call.
        sampling: how the real call is made.
        backend: what runs sparse layers; None for the one of the device.
        device: where to run; None for the backend's.
        max_memory: bytes; None for what is free now.
        limit_s: for all timings together, past two runs of each.
        blocks: globs that say where the blocks are, for every denoiser or by denoiser; by default
            a pruned folder's manifest says it, or they are found.
    """

    sparsity: float | None = None
    pattern: str | None = None
    num_tokens: int | None = None
    sampling: Sampling = field(default_factory=lambda: Sampling(num_samples=1, batch_size=1))
    backend: str | None = None
    device: str | None = None
    max_memory: int | None = None
    limit_s: float = 120.0
    blocks: Globs = ()

    def __post_init__(self) -> None:
        if self.num_tokens is not None:
            numbers.whole("num_tokens", self.num_tokens)
        if not numbers.finite("time_limit", self.limit_s) > 0:
            raise RecipeError(f"--time-limit {self.limit_s}: expected seconds above 0")
        sampling = self.sampling
        shapes_a_call = sampling.height or sampling.width or sampling.pipeline_options
        if self.num_tokens is not None and shapes_a_call:
            raise RecipeError(
                "--num-tokens: excludes --height and --width and --pipeline-option, which shape a "
                "real call; leave it out, or these"
            )


def bench_model(
    model: ModelFolder, options: BenchOptions, progress: Progress = silent
) -> dict[str, Any]:
    """Time a model's layers and its step. Raises DitpruneError before any timing."""
    trial = trial_of(options.sparsity, options.pattern)
    device, backend, notes = _where(options)
    denoisers, layer_notes = find_timed_layers(model, trial, options.blocks)
    notes += layer_notes
    sparsities = {name: layers.sparsities(progress) for name, layers in denoisers.items()}
    check_zeros(model, denoisers, sparsities)
    memory = options.max_memory or free_bytes(device)
    calls, tokens = _calls_and_tokens(
        model, denoisers, options, Placement(device, max_memory=memory)
    )
    rows: list[dict[str, Any]] = []
    steps: dict[str, Any] = {}
    share_s = options.limit_s / (2 * len(denoisers))  # half for layers, half for steps
    for name, layers in denoisers.items():
        prefix = f"{name}: " if len(denoisers) > 1 else ""
        timed = bench_layers(
            layers, tokens[name], sparsities[name], backend, device, share_s, progress
        )
        rows += ({**row, "layer": f"{prefix}{row['layer']}"} for row in timed)
        num_uncalled = len(layers.targets) - len(tokens[name])
        if num_uncalled:
            notes.append(f"{prefix}{num_uncalled} layers were not called, and are not timed")
        call = calls.get(name)
        steps[name] = bench_step(layers, call, memory, backend, device, share_s, progress)
    return {
        "model": model.name,
        "pruned_in_memory": trial is not None,
        "device": device,
        "num_threads": torch.get_num_threads(),
        "instruction_set": build.instruction_set(),
        "backend": None if backend is None else backend.name,
        "versions": installed_versions(),
        "is_compact": any(is_compact(layers.folder) for layers in denoisers.values()),
        "size_bytes_on_disk": sum(layers.weights.stored_bytes for layers in denoisers.values()),
        "layers": rows,
        "layers_together": together(rows),
        "steps": steps,
        "notes": [*notes, _NO_GPU_KERNEL],
    }


def _calls_and_tokens(
    model: ModelFolder,
    denoisers: Mapping[str, TimedLayers],
    options: BenchOptions,
    placement: Placement,
) -> tuple[Mapping[str, Call], Mapping[str, NumTokens]]:
    """A call of each denoiser, none under `--num-tokens`, and the tokens of each of its layers."""
    if options.num_tokens is None:
        calls, tokens = first_calls(model, denoisers, options.sampling, placement)
        gc.collect()  # the pipeline
        return calls, tokens
    return {}, {
        name: {
            layer: _NUM_MODULATION_ROWS if target.role == "modulation" else options.num_tokens
            for layer, target in layers.targets.items()
        }
        for name, layers in denoisers.items()
    }


def together(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The verdict over all layers, each on its faster side: a step without its other parts."""
    return verdict_of(
        {
            path: sum(
                row["num_layers"] * min(row[f"{dense}_ms"], row[f"{path}_ms"] or math.inf)
                for row in rows
            )
            for dense, path in zip((*DENSE, *DENSE), (*DENSE, *SPARSE), strict=True)
            if any(row[f"{path}_ms"] for row in rows)
        }
    )


def _where(options: BenchOptions) -> tuple[str, Backend | None, list[str]]:
    """The device, what runs sparse layers there, and notes on it. Raises KernelError."""
    asked = None if options.backend is None else backend_of(options.backend)
    device = options.device or (asked.device if asked else "cpu")
    kind = device.split(":")[0]
    if asked is not None and asked.device != kind:
        raise RecipeError(
            f"--backend {asked.name}: runs on {asked.device}, not on --device {device}; leave one "
            "of them out"
        )
    backend = asked or next((b() for b in BACKENDS.values() if b.device == kind), None)
    if backend is None:
        return device, None, [f"{device}: nothing runs sparse layers there"]
    try:
        backend.check()
    except KernelError as error:
        if asked is not None:
            raise
        return device, None, [str(error)]
    return device, backend, []
