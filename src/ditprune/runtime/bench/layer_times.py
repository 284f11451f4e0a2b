"""The layers of a model by shape, each timed dense and sparse; weights are read one at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ditprune.errors import RecipeError
from ditprune.method.granularity import NM
from ditprune.method.masks import keep_best
from ditprune.progress import Progress
from ditprune.runtime.backends import Backend
from ditprune.runtime.stopwatch import best_seconds, cold_buffer
from ditprune.runtime.swap import MIN_GAIN

DENSE = {"dense_fp32": torch.float32, "dense_bf16": torch.bfloat16}
SPARSE = {"sparse_fp32": torch.float32, "sparse_bf16": torch.bfloat16}
_MODEL_BYTES = 1 << 30  # of other layers, that a layer's weight finds in the cache
_NUM_ROUNDS = 20


@dataclass(frozen=True)
class Kind:
    """What layers have in common that are timed as one.

    Args:
        shape: (C_out, C_in).
        num_tokens: rows of their inputs.
        sparsity: share of zeros, to two digits.
    """

    shape: tuple[int, int]
    num_tokens: int
    sparsity: float


@dataclass(frozen=True)
class TrialPruning:
    """How a dense weight is pruned in memory: by magnitude, within each output channel.

    Args:
        sparsity: share of each channel to remove; None with a pattern.
        pattern: N:M, or None.
    """

    sparsity: float | None
    pattern: NM | None

    @classmethod
    def of(cls, sparsity: float | None, pattern: str | None) -> TrialPruning | None:
        """From options; None where neither is given. Raises RecipeError."""
        if sparsity is None and pattern is None:
            return None
        if sparsity is not None and pattern is not None:
            raise RecipeError("--sparsity and --pattern exclude each other; give one")
        if sparsity is not None and not 0 < sparsity < 1:
            raise RecipeError(f"--sparsity {sparsity}: expected 0 < sparsity < 1")
        return cls(sparsity, None if pattern is None else NM.parse(pattern))

    def __call__(self, weight: Tensor) -> Tensor:
        """The pruned weight [C_out, C_in]."""
        num_out, num_in = weight.shape
        scores = weight.float().abs()
        if self.pattern is None:
            num_keep = num_in - round((self.sparsity or 0.0) * num_in)
        else:
            scores = scores.reshape(self.pattern.group_shape(num_out, num_in))
            num_keep = self.pattern.keep
        return weight * keep_best(scores, num_keep).reshape(weight.shape)


def bench_kind(
    kind: Kind, weight: Tensor, backend: Backend | None, device: str, limit_s: float
) -> dict[str, Any]:
    """Milliseconds, bytes and verdict of one kind.

    Args:
        weight: [C_out, C_in] of one layer of the kind.
        backend: what runs sparse; None where nothing can.
    """
    layers = _layers(weight, kind.num_tokens, backend, device)
    works, reasons = {}, {}
    for path, layer in layers.items():
        if isinstance(layer, str):
            reasons[path] = layer
        else:
            dtype = (DENSE | SPARSE)[path]
            inputs = torch.ones(kind.num_tokens, kind.shape[1], dtype=dtype, device=device)
            works[path] = partial(layer, inputs)
    cold = cold_buffer(_MODEL_BYTES, device)
    with torch.no_grad():
        seconds = best_seconds([*works.values()], device, _NUM_ROUNDS, limit_s, cold)
    found = dict(zip(works, seconds, strict=True))
    size_bytes = {path: _size_bytes(layers[path]) for path in works}
    return {**verdict(found), "size_bytes": size_bytes, "reasons": reasons}


def verdict(seconds: Mapping[str, float]) -> dict[str, Any]:
    """What times say: sparse pays where the fastest of it beats the fastest of dense.

    Args:
        seconds: by path (`dense_fp32`, …); those that cannot run are not in it.
    """
    dense = {path: time for path, time in seconds.items() if path in DENSE}
    sparse = {path: time for path, time in seconds.items() if path in SPARSE}
    best_sparse = min(sparse.values(), default=None)

    def gain(against: str, own: float | None) -> float | None:
        return None if own is None or against not in dense else dense[against] / own

    return {
        **{f"{path}_ms": _ms(seconds.get(path)) for path in (*DENSE, *SPARSE)},
        "sparse_ms": _ms(best_sparse),
        "gain_fp32": gain("dense_fp32", sparse.get("sparse_fp32")),
        "gain_bf16": gain("dense_bf16", sparse.get("sparse_bf16")),
        "best": min(seconds, key=lambda path: seconds[path]),
        "pays": best_sparse is not None and min(dense.values()) >= MIN_GAIN * best_sparse,
    }


def bench_layers(
    kinds: Mapping[Kind, list[str]], read: Callable[[str], Tensor], backend: Backend | None,
    device: str, limit_s: float, progress: Progress,
) -> list[dict[str, Any]]:  # fmt: skip
    """One row for each kind, in the order of the model.

    Args:
        kinds: with the names of their layers.
        read: the weight of a layer as it is to be timed, [C_out, C_in].
        limit_s: for all of them; each is run twice whatever it takes.
    """
    rows = []
    for number, (kind, names) in enumerate(kinds.items(), start=1):
        found = bench_kind(kind, read(names[0]), backend, device, limit_s / len(kinds))
        rows.append({
            "layer": names[0], "num_layers": len(names), "shape": list(kind.shape),
            "num_tokens": kind.num_tokens, "sparsity": kind.sparsity, **found,
        })  # fmt: skip
        progress("timing layers", number, len(kinds))
    return rows


def _layers(
    weight: Tensor, num_tokens: int, backend: Backend | None, device: str
) -> dict[str, Any]:  # fmt: skip
    """By path a layer, or the reason why there is none."""
    layers: dict[str, Any] = {
        path: _linear(weight.to(device, dtype)) for path, dtype in DENSE.items()
    }
    for path, dtype in SPARSE.items():
        linear = _linear(weight.to(device, dtype))
        reason = "no backend runs here" if backend is None else backend.obstacle(linear)
        layers[path] = reason or backend.sparse(linear, [num_tokens])  # type: ignore[union-attr]
    return layers


def _linear(weight: Tensor) -> nn.Linear:
    num_out, num_in = weight.shape
    linear = nn.Linear(num_in, num_out, bias=False, device="meta")
    linear.weight = nn.Parameter(weight, requires_grad=False)
    return linear


def _size_bytes(layer: Any) -> int:
    if isinstance(layer, nn.Linear):
        return layer.weight.numel() * layer.weight.element_size()
    return layer.size_bytes


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else 1000 * seconds
