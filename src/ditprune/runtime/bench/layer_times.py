"""How long does each distinct layer take, dense and sparse? Weights are read one at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ditprune.progress import Progress
from ditprune.runtime.backends import Backend
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
    kinds: Mapping[LayerKind, list[str]],
    read: Callable[[str], Tensor],
    backend: Backend | None,
    device: str,
    limit_s: float,
    progress: Progress,
) -> list[dict[str, Any]]:
    """One row for each kind, in the order of the model: milliseconds, bytes and verdict.

    Args:
        kinds: with the names of their layers.
        read: the weight of a layer as it is to be timed, [C_out, C_in].
        backend: what runs sparse layers; None if nothing can.
        limit_s: for all kinds together; each is run twice whatever it takes.
    """
    rows = []
    for number, (kind, names) in enumerate(kinds.items(), start=1):
        times = _bench_kind(kind, read(names[0]), backend, device, limit_s / len(kinds))
        rows.append({"layer": names[0], "num_layers": len(names), **kind._asdict(), **times})
        progress("timing layers", number, len(kinds))
    return rows


def verdict_of(seconds: Mapping[str, float]) -> dict[str, Any]:
    """What times say: sparse pays if the fastest sparse path beats the fastest dense one.

    Args:
        seconds: by path (`dense_fp32`, …), without the paths that cannot run.
    """
    best_dense = min(seconds[path] for path in DENSE if path in seconds)
    best_sparse = min((seconds[path] for path in SPARSE if path in seconds), default=None)

    def gain(dense: str, sparse: str) -> float | None:
        has_both = dense in seconds and sparse in seconds
        return seconds[dense] / seconds[sparse] if has_both else None

    return {
        **{f"{path}_ms": _ms(seconds.get(path)) for path in (*DENSE, *SPARSE)},
        "sparse_ms": _ms(best_sparse),
        "gain_fp32": gain("dense_fp32", "sparse_fp32"),
        "gain_bf16": gain("dense_bf16", "sparse_bf16"),
        "best": min(seconds, key=lambda path: seconds[path]),
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
    times = verdict_of(dict(zip(works, seconds, strict=True)))
    return {**times, "size_bytes": sizes, "reasons": reasons}


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


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else 1000 * seconds
