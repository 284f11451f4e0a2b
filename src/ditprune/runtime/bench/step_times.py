"""How long does a whole denoiser call take, dense and sparse?"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from torch import nn

from ditprune.calls import Call
from ditprune.denoiser.pipeline import load_denoiser
from ditprune.denoiser.placement import Placement
from ditprune.denoiser.replay import run_call
from ditprune.denoiser.rows import to_placement
from ditprune.progress import Progress
from ditprune.runtime.backends import Backend
from ditprune.runtime.bench.layer_times import DENSE, NO_BACKEND, SPARSE, verdict_of
from ditprune.runtime.bench.timed_layers import TimedLayers, pruned_on_trial
from ditprune.runtime.semi_structured import SemiStructuredLinear
from ditprune.runtime.stopwatch import best_seconds
from ditprune.runtime.swap import Decision, held_bytes, sparsify_
from ditprune.targets.discover import discover
from ditprune.targets.matrix import as_matrix

# Dense in float32 and bfloat16, and a sparse copy of each, which may take as much.
_BYTES_PER_PARAMETER = 12
_NUM_ROUNDS = 10


def bench_step(
    layers: TimedLayers,
    call: Call | None,
    memory: int,
    backend: Backend | None,
    device: str,
    limit_s: float,
    progress: Progress,
) -> dict[str, Any]:
    """Milliseconds, bytes and verdict of one call of a denoiser, or the reason why there are none.

    Args:
        memory: bytes that all copies of the denoiser may take.
        limit_s: for all timings, past two runs of each. Half is used to choose the layers, half
            to time the step.
    """
    reason = _obstacle(layers, call, memory)
    if reason or call is None:
        return {"reason": reason}
    dense = _load(layers, device)
    denoisers: dict[str, nn.Module] = {}
    works, num_swapped = [], {}
    reasons = {} if backend else dict.fromkeys(SPARSE, NO_BACKEND)
    paths = DENSE | SPARSE if backend else DENSE
    for number, (path, dtype) in enumerate(paths.items(), start=1):
        is_dense = path in DENSE and dtype == torch.float32
        denoiser = dense if is_dense else copy.deepcopy(dense).to(dtype)
        path_call = to_placement(call, device, dtype)
        if backend and path in SPARSE:
            layer_limit_s = limit_s / 2 / len(SPARSE)
            decisions = sparsify_(denoiser, path_call, backend, limit_s=layer_limit_s)
            num_swapped[path] = sum(decision.is_swapped for decision in decisions.values())
            if not num_swapped[path]:
                reasons[path] = why_dense(decisions.values())
        if path not in reasons:
            denoisers[path] = denoiser
            works.append(partial(run_call, denoiser, path_call))
        progress("preparing the step", number, len(paths))
    del dense
    seconds = best_seconds(works, device, _NUM_ROUNDS, limit_s / 2)
    ms = {path: 1000 * best_s for path, best_s in zip(denoisers, seconds, strict=True)}
    return {
        **verdict_of(ms),
        "num_swapped": num_swapped,
        "memory_bytes": {path: _memory_bytes(denoiser) for path, denoiser in denoisers.items()},
        "reasons": reasons,
    }


def _obstacle(layers: TimedLayers, call: Call | None, memory: int) -> str:
    """Why no call can be timed; empty if one can."""
    if call is None:
        return "--num-tokens gives no call; leave it out, with a pipeline, to time a whole step"
    needed = layers.weights.num_parameters * _BYTES_PER_PARAMETER
    if needed > memory:
        return (
            f"four copies of the denoiser take {needed / 1e9:.1f} GB, and {memory / 1e9:.1f} GB "
            "may be taken; its layers were timed one at a time"
        )
    return ""


def why_dense(decisions: Iterable[Decision]) -> str:
    """Why no layer of a denoiser runs sparse: the commonest reasons, with their layers counted."""
    causes = Counter(
        "not faster" if decision.dense_s else decision.reason for decision in decisions
    )
    return "no layer runs sparse: " + "; ".join(
        f"{cause} ({num} of {causes.total()} layers)" for cause, num in causes.most_common(3)
    )


@torch.no_grad()
def _load(layers: TimedLayers, device: str) -> nn.Module:
    """The denoiser in float32, pruned on trial."""
    denoiser = load_denoiser(layers.folder, Placement(device))
    if layers.trial is not None:
        for name in discover(denoiser, blocks=layers.blocks):
            weight = as_matrix(denoiser.get_parameter(f"{name}.weight"))
            weight.copy_(pruned_on_trial(weight, layers.trial))
    return denoiser


def _memory_bytes(denoiser: nn.Module) -> int:
    """The memory of a denoiser's weights, dense or sparse."""
    compressed = (m for m in denoiser.modules() if isinstance(m, SemiStructuredLinear))
    return held_bytes(denoiser) + sum(module.size_bytes for module in compressed)
