"""A whole denoiser call, dense and sparse beside each other, where all of them fit."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ditprune.calls import Call
from ditprune.checkpoints.compact.compact_folder import open_weights
from ditprune.denoiser.pipeline import load_denoiser
from ditprune.denoiser.placement import Placement
from ditprune.denoiser.replay import run_call
from ditprune.denoiser.rows import to_placement
from ditprune.progress import Progress
from ditprune.runtime.backends import Backend
from ditprune.runtime.bench.layer_times import DENSE, SPARSE, TrialPruning, verdict
from ditprune.runtime.stopwatch import best_seconds
from ditprune.runtime.swap import Decision, sparsify_
from ditprune.targets.discover import discover
from ditprune.targets.matrix import as_matrix

# Dense in float32 and bfloat16, each with its sparse twin, which may take as much.
_BYTES_PER_PARAMETER = 12
_NUM_ROUNDS = 10


def step_bytes(folder: Path) -> int:
    """What timing a whole step takes."""
    return open_weights(folder).num_parameters * _BYTES_PER_PARAMETER


def bench_step(
    folder: Path, call: Call, trial: TrialPruning | None, backend: Backend | None, device: str,
    limit_s: float, progress: Progress,
) -> dict[str, Any]:  # fmt: skip
    """Milliseconds, bytes and verdict of one call of a folder's denoiser.

    Args:
        limit_s: for all timings, past two runs of each: half to choose the layers, half for the
            step.
    """
    dense = load_denoiser(folder, Placement(device))
    if trial is not None:
        prune_on_trial_(dense, trial)
    denoisers, reasons, swapped = {}, {}, {}
    for path, dtype in (DENSE | SPARSE).items():
        denoisers[path] = copy_in(dense, dtype)
        if path not in SPARSE:
            continue
        if backend is None:
            reasons[path] = "no backend runs here"
        else:
            moved = to_placement(call, device, dtype)
            decisions = sparsify_(
                denoisers[path], moved, backend, limit_s=limit_s / 2 / len(SPARSE)
            )
            swapped[path] = sum(one.is_swapped for one in decisions.values())
            if not swapped[path]:
                reasons[path] = why_dense(decisions.values())
        progress("preparing the step", len(denoisers), len(DENSE | SPARSE))
    for path in reasons:
        del denoisers[path]
    works = {
        path: _work(denoiser, to_placement(call, device, (DENSE | SPARSE)[path]))
        for path, denoiser in denoisers.items()
    }
    seconds = best_seconds([*works.values()], device, _NUM_ROUNDS, limit_s / 2)
    return {
        **verdict(dict(zip(works, seconds, strict=True))),
        "num_swapped": swapped,
        "memory_bytes": {path: memory_bytes(one) for path, one in denoisers.items()},
        "reasons": reasons,
    }


def why_dense(decisions: Iterable[Decision]) -> str:
    """Why no layer of a denoiser runs sparse: its commonest causes, with the layers of each."""
    causes = Counter("not faster" if one.dense_s else one.reason for one in decisions)
    return "no layer runs sparse: " + "; ".join(
        f"{cause} ({num} of {causes.total()} layers)" for cause, num in causes.most_common(3)
    )


@torch.no_grad()
def prune_on_trial_(denoiser: nn.Module, trial: TrialPruning) -> None:
    """Prune every target of a denoiser in place."""
    for name in discover(denoiser):
        weight = as_matrix(denoiser.get_parameter(f"{name}.weight"))
        weight.copy_(trial(weight))


def copy_in(denoiser: nn.Module, dtype: torch.dtype) -> nn.Module:
    """A copy in these numbers that shares what is in them already; what diffusers keeps in
    float32 stays.
    """
    kept = set(getattr(denoiser, "_keep_in_fp32_modules", None) or [])
    memo: dict[int, Any] = {}
    for name, tensor in (*denoiser.named_parameters(), *denoiser.named_buffers()):
        stays = not tensor.is_floating_point() or not kept.isdisjoint(name.split("."))
        moved = tensor if stays or tensor.dtype == dtype else tensor.detach().to(dtype)
        is_own = isinstance(tensor, nn.Parameter) and not isinstance(moved, nn.Parameter)
        memo[id(tensor)] = nn.Parameter(moved, requires_grad=False) if is_own else moved
    return copy.deepcopy(denoiser, memo)


def memory_bytes(denoiser: nn.Module) -> int:
    """What the weights of a denoiser take as they are held."""
    own = {id(tensor): tensor for tensor in (*denoiser.parameters(), *denoiser.buffers())}
    held = sum(tensor.numel() * tensor.element_size() for tensor in own.values())
    compressed = [m for m in denoiser.modules() if hasattr(m, "compressed")]
    return held + sum(m.size_bytes for m in compressed)  # type: ignore[misc]


def _work(denoiser: nn.Module, call: Call) -> Callable[[], Any]:
    return lambda: run_call(denoiser, call)
