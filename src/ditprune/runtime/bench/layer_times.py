"""How long does each distinct layer take, dense and sparse? Weights are read one at a time."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ditprune.progress import Progress
from ditprune.runtime.backends import Backend
from ditprune.runtime.bench.timed_layers import NumTokens, TimedLayers
from ditprune.runtime.stand_in import StandIn
from ditprune.runtime.stopwatch import best_seconds, cold_buffer
from ditprune.runtime.swap import MIN_GAIN, held_bytes

DENSE = {"dense_fp32": torch.float32, "dense_bf16": torch.bfloat16}
SPARSE = {"sparse_fp32": torch.float32, "sparse_bf16": torch.bfloat16}
NO_BACKEND = "no backend runs here"
_MODEL_BYTES = 1 << 30  # of the other layers, which evict a layer's weight from the cache
_NUM_ROUNDS = 20


class LayerKind(NamedTuple):
    """What layers have in common that are timed as one.

    Args:
        shape: (C_out, C_in).
        num_tokens: rows of their inputs.
        sparsity: share of zeros, to two digits.
    """

    shape: tuple[int, int]
    num_tokens: int
    sparsity: float


def bench_layers(
    layers: TimedLayers,
    tokens: NumTokens,
    sparsities: Mapping[str, float],
    backend: Backend | None,
    device: str,
    limit_s: float,
    progress: Progress,
) -> list[dict[str, Any]]:
    """One row for each kind of layer, in the order of the model: milliseconds, bytes and verdict.

    Args:
        tokens: of the layers that are called.
        backend: what runs sparse layers; None if nothing can.
        limit_s: for all kinds together; each is run twice whatever it takes.
    """
    kinds: dict[LayerKind, list[str]] = {}
    for name, num_tokens in tokens.items():
        kind = LayerKind(layers.targets[name].shape, num_tokens, sparsities[name])
        kinds.setdefault(kind, []).append(name)
    rows = []
    for number, (kind, names) in enumerate(kinds.items(), start=1):
        times = _bench_kind(kind, layers.read(names[0]), backend, device, limit_s / len(kinds))
        rows.append({"layer": names[0], "num_layers": len(names), **kind._asdict(), **times})
        progress("timing layers", number, len(kinds))
    return rows


def verdict_of(ms: Mapping[str, float]) -> dict[str, Any]:
    """What times say: sparse pays if the fastest sparse path beats the fastest dense one.

    Args:
        ms: milliseconds by path (`dense_fp32`, …), without the sparse paths that cannot run.
    """
    best_dense = min(ms[path] for path in DENSE)
    best_sparse = min((ms[path] for path in SPARSE if path in ms), default=None)
    gains = {
        f"gain_{dtype}": ms[f"dense_{dtype}"] / ms[f"sparse_{dtype}"]
        if f"sparse_{dtype}" in ms
        else None
        for dtype in ("fp32", "bf16")
    }
    return {
        **{f"{path}_ms": ms.get(path) for path in (*DENSE, *SPARSE)},
        "sparse_ms": best_sparse,
        **gains,
        "best": min(ms, key=lambda path: ms[path]),
        "pays": best_sparse is not None and best_dense >= MIN_GAIN * best_sparse,
    }


def _bench_kind(
    kind: LayerKind, weight: Tensor, backend: Backend | None, device: str, limit_s: float
) -> dict[str, Any]:
    works, sizes, reasons = {}, {}, {}
    for path, dtype in (DENSE | SPARSE).items():
        layer = _layer(path, weight.to(device, dtype), kind.num_tokens, backend)
        if isinstance(layer, str):
            reasons[path] = layer
            continue
        inputs = torch.ones(kind.num_tokens, kind.shape[1], dtype=dtype, device=device)
        works[path] = partial(layer, inputs)
        sizes[path] = layer.size_bytes if isinstance(layer, StandIn) else held_bytes(layer)
    cold = cold_buffer(_MODEL_BYTES, device)
    with torch.no_grad():
        seconds = best_seconds([*works.values()], device, _NUM_ROUNDS, limit_s, cold)
    ms = {path: 1000 * best_s for path, best_s in zip(works, seconds, strict=True)}
    return {**verdict_of(ms), "size_bytes": sizes, "reasons": reasons}


def _layer(
    path: str, weight: Tensor, num_tokens: int, backend: Backend | None
) -> nn.Linear | StandIn | str:
    """The layer of a path, or the reason why it cannot run."""
    num_out, num_in = weight.shape
    linear = nn.Linear(num_in, num_out, bias=False, device="meta")
    linear.weight = nn.Parameter(weight, requires_grad=False)
    if path in DENSE:
        return linear
    if backend is None:
        return NO_BACKEND
    return backend.obstacle(linear) or backend.sparse(linear, [num_tokens])
