"""Whether pruning pays on this machine: a model's own shapes, timed dense and sparse.

Layers are read from the files one at a time, so a model of any size can be benched; a whole step
needs several copies of it, and is timed where they fit.
"""

from __future__ import annotations

import gc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ditprune.calibration.sample import Sampling
from ditprune.calls import Call
from ditprune.checkpoints import manifest
from ditprune.checkpoints.compact.compact_folder import open_weights
from ditprune.checkpoints.locate import ModelFolder
from ditprune.checkpoints.skeleton import skeleton
from ditprune.checkpoints.weights import Weights
from ditprune.denoiser.pipeline import load_pipeline
from ditprune.denoiser.placement import Placement
from ditprune.errors import KernelError, RecipeError
from ditprune.progress import Progress, silent
from ditprune.runtime import build
from ditprune.runtime.backends import BACKENDS, Backend, backend_of
from ditprune.runtime.bench.free_memory import free_bytes
from ditprune.runtime.bench.layer_times import (
    DENSE,
    SPARSE,
    Kind,
    TrialPruning,
    bench_layers,
    verdict,
)
from ditprune.runtime.bench.real_call import Tokens, real_calls
from ditprune.runtime.bench.step_times import bench_step, step_bytes
from ditprune.targets.discover import Target, discover
from ditprune.targets.matrix import as_matrix
from ditprune.writing.output import is_compact

NUM_MODULATION_ROWS = 2  # one image under guidance
_FEW_ZEROS = 0.005
NO_GPU_KERNEL = (
    "4:8 and unstructured zeros have no GPU kernel: on a GPU only 2:4 can be faster, in float16 or "
    "bfloat16"
)


@dataclass(frozen=True)
class Options:
    """What is timed.

    Args:
        sparsity, pattern: of a dense model, to prune it by magnitude in memory.
        num_tokens: of each layer but modulation; None takes them from a real call.
        sampling: where the call comes from.
        backend: what runs sparse; None is what the device has.
        device: where; None is the backend's.
        max_memory: bytes; None is what is free now.
        limit_s: for all timings together, past two runs of each.
    """

    sparsity: float | None = None
    pattern: str | None = None
    num_tokens: int | None = None
    sampling: Sampling = field(default_factory=lambda: Sampling(num_samples=1, batch_size=1))
    backend: str | None = None
    device: str | None = None
    max_memory: int | None = None
    limit_s: float = 120.0

    def __post_init__(self) -> None:
        if self.num_tokens is not None and self.num_tokens < 1:
            raise RecipeError(f"--num-tokens {self.num_tokens}: expected at least 1")
        if not self.limit_s > 0:
            raise RecipeError(f"--time-limit {self.limit_s}: expected seconds above 0")
        own = self.sampling
        if self.num_tokens is not None and (own.height or own.width or own.pipeline_options):
            raise RecipeError(
                "--num-tokens: excludes --height and --width and --pipeline-option, which shape a "
                "real call; leave it out, or these"
            )


@dataclass(frozen=True)
class Part:
    """One denoiser: its layers that can be timed, and how its zeros are had."""

    folder: Path
    weights: Weights
    targets: Mapping[str, Target]
    trial: TrialPruning | None

    def read(self, name: str) -> Tensor:
        """The weight of a layer as it is timed, [C_out, C_in]."""
        weight = as_matrix(self.weights.read(f"{name}.weight"))
        return weight if self.trial is None else self.trial(weight)


def bench(model: ModelFolder, options: Options, progress: Progress = silent) -> dict[str, Any]:
    """Time a model's layers and its step. Raises DitpruneError before any timing."""
    trial = TrialPruning.of(options.sparsity, options.pattern)
    device, backend, notes = _where(options)
    parts, own_notes = _parts(model, trial)
    sparsities = {name: _sparsities(part, progress) for name, part in parts.items()}
    _check_zeros(model, parts, sparsities)
    memory = options.max_memory or free_bytes(device)
    calls, tokens = _calls(model, parts, options, device, memory)
    rows: list[dict[str, Any]] = []
    steps: dict[str, Any] = {}
    share_s = options.limit_s / (2 * len(parts))  # half for layers, half for steps
    for name, part in parts.items():
        kinds = _kinds(part, tokens[name], sparsities[name])
        found = bench_layers(kinds, part.read, backend, device, share_s, progress)
        prefix = f"{name}: " if len(parts) > 1 else ""
        rows += [{**row, "layer": f"{prefix}{row['layer']}"} for row in found]
        silent_layers = len(part.targets) - len(tokens[name])
        if silent_layers:
            own_notes.append(f"{prefix}{silent_layers} layers were not called, and are not timed")
        call = calls.get(name)
        reason = _why_no_step(part.folder, call, memory)
        steps[name] = {"reason": reason} if reason or call is None else bench_step(
            part.folder, call, trial, backend, device, share_s, progress
        )  # fmt: skip
    return {
        "model": model.name,
        "pruned_in_memory": trial is not None,
        "device": device,
        "num_threads": torch.get_num_threads(),
        "instruction_set": build.instruction_set(),
        "backend": None if backend is None else backend.name,
        "versions": manifest.versions(),
        "is_compact": any(is_compact(part.folder) for part in parts.values()),
        "size_bytes_on_disk": sum(part.weights.stored_bytes for part in parts.values()),
        "layers": rows,
        "layers_together": together(rows),
        "steps": steps,
        "notes": [*notes, *own_notes, NO_GPU_KERNEL],
    }


def together(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The verdict over all layers, each on its faster side: a step without what is no target."""
    sums = dict.fromkeys((*DENSE, *SPARSE), 0.0)
    for row in rows:
        for dense, sparse in zip(DENSE, SPARSE, strict=True):
            own, other = row[f"{dense}_ms"], row[f"{sparse}_ms"]
            sums[dense] += row["num_layers"] * own / 1000
            sums[sparse] += row["num_layers"] * min(own, own if other is None else other) / 1000
    ran = {path: any(row[f"{path}_ms"] is not None for row in rows) for path in sums}
    return verdict({path: time for path, time in sums.items() if ran[path]})


def _where(options: Options) -> tuple[str, Backend | None, list[str]]:
    """The device, what runs sparse there, and what is to be said of it. Raises KernelError."""
    asked = None if options.backend is None else backend_of(options.backend)
    device = options.device or (asked.device if asked else "cpu")
    kind = device.split(":")[0]
    if asked is not None and asked.device != kind:
        raise RecipeError(
            f"--backend {asked.name}: runs on {asked.device}, not on --device {device}; leave one "
            "of them out"
        )
    found = asked or next((one() for one in BACKENDS.values() if one.device == kind), None)
    if found is None:
        return device, None, [f"{device}: nothing runs sparse layers there"]
    try:
        found.check()
    except KernelError as error:
        if asked is not None:
            raise
        return device, None, [str(error)]
    return device, found, []


def _parts(
    model: ModelFolder, trial: TrialPruning | None
) -> tuple[dict[str, Part], list[str]]:  # fmt: skip
    """The denoisers, and what of them cannot be timed."""
    parts, notes = {}, []
    for name, folder in model.denoisers.items():
        targets = discover(skeleton(folder, takes_compact=True))
        linear = {n: target for n, target in targets.items() if target.kind == "linear"}
        if len(linear) < len(targets):
            notes.append(
                f"{len(targets) - len(linear)} pointwise convolutions stay dense: sparse layers "
                "stand for Linears only"
            )
        parts[name] = Part(folder, open_weights(folder), linear, trial)
    return parts, notes


def _sparsities(part: Part, progress: Progress) -> dict[str, float]:
    """The share of zeros of each layer, to two digits; of one of each shape where we prune."""
    found: dict[str, float] = {}
    by_shape: dict[tuple[int, int], float] = {}
    for number, (name, target) in enumerate(part.targets.items(), start=1):
        if part.trial is None or target.shape not in by_shape:
            weight = part.read(name)
            by_shape[target.shape] = round(1 - int(weight.count_nonzero()) / weight.numel(), 2)
        found[name] = by_shape[target.shape]
        progress("counting zeros", number, len(part.targets))
    return found


def _check_zeros(
    model: ModelFolder, parts: Mapping[str, Part], sparsities: Mapping[str, Mapping[str, float]]
) -> None:
    """Refuse a dense model without a sparsity, and a pruned one with one. Raises RecipeError."""
    if any(share > _FEW_ZEROS for own in sparsities.values() for share in own.values()):
        part = next(iter(parts.values()))
        weight = as_matrix(part.weights.read(f"{next(iter(part.targets))}.weight"))
        stored = 1 - int(weight.count_nonzero()) / weight.numel()
        if part.trial is not None and stored > _FEW_ZEROS:
            raise RecipeError(
                f"{model.name}: {stored:.0%} of its first target are zeros already; leave "
                "--sparsity and --pattern out"
            )
        return
    raise RecipeError(
        f"{model.name}: its layers have no zeros to skip; pass --sparsity 0.5 (or --pattern 2:4) "
        "to prune it by magnitude in memory, or name a pruned folder"
    )


def _calls(
    model: ModelFolder, parts: Mapping[str, Part], options: Options, device: str, memory: int
) -> tuple[dict[str, Call], dict[str, Tokens]]:
    """A call of each denoiser, where there is one, and the tokens of each layer."""
    if options.num_tokens is not None:
        return {}, {name: _given_tokens(part, options.num_tokens) for name, part in parts.items()}
    if not model.is_pipeline:
        raise RecipeError(
            f"{model.name}: is a bare denoiser, without a pipeline to take a call from; pass "
            "--num-tokens, or the pipeline's folder"
        )
    pipeline = load_pipeline(model, Placement(device, max_memory=memory))
    names = {name: list(part.targets) for name, part in parts.items()}
    found = real_calls(pipeline, replace(options.sampling, num_samples=1, batch_size=1), names)
    del pipeline
    gc.collect()
    calls = {name: call for name, (call, _) in found.items()}
    return calls, {name: tokens for name, (_, tokens) in found.items()}


def _given_tokens(part: Part, num_tokens: int) -> Tokens:
    return {
        name: NUM_MODULATION_ROWS if target.role == "modulation" else num_tokens
        for name, target in part.targets.items()
    }


def _kinds(part: Part, tokens: Tokens, sparsities: Mapping[str, float]) -> dict[Kind, list[str]]:
    kinds: dict[Kind, list[str]] = {}
    for name, num_tokens in tokens.items():
        kind = Kind(part.targets[name].shape, num_tokens, sparsities[name])
        kinds.setdefault(kind, []).append(name)
    return kinds


def _why_no_step(folder: Path, call: Call | None, memory: int) -> str:
    """Why a whole step is not timed; empty if it is."""
    if call is None:
        return "--num-tokens gives no call; leave it out, with a pipeline, to time a whole step"
    needed = step_bytes(folder)
    if needed > memory:
        return (
            f"four copies of the denoiser take {needed / 1e9:.1f} GB, and "
            f"{memory / 1e9:.1f} GB may be taken; its layers were timed one at a time"
        )
    return ""
