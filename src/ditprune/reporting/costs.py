"""What does a pruned model save? Nothing counts as saved that nothing skipped.

An evaluation draws images with dense kernels, whatever the zeros. So their seconds differ by chance
alone, and no percentage stands beside them. Time is saved where `ditprune bench` measured it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ditprune.reporting import formats

_STEP_MS = ("dense_fp32_ms", "dense_bf16_ms", "sparse_fp32_ms", "sparse_bf16_ms")


def cost_text(
    model: Mapping[str, Any], dense: Mapping[str, Any], bench: Mapping[str, Any] | None = None
) -> str:
    """Removed share, size and speed of a pruned model, one line.

    Args:
        bench: the timings that `ditprune bench --out` added to the results.
    """
    removed = f"{formats.percent(model['sparsity'])} of the target weights removed"
    mine, theirs = model["accounting"]["size_bytes"], dense["accounting"]["size_bytes"]
    change = formats.change(mine, theirs)
    sizes = {"": "", "same": f"{formats.size(mine)}, the dense model's size"}
    size = sizes.get(change, f"{formats.size(mine)} ({change})")
    return "; ".join(part for part in (removed, size, _speed(model["name"], bench)) if part)


def _speed(name: str, bench: Mapping[str, Any] | None) -> str:
    if bench is None or Path(bench["model"]).name != name:
        return "no time saved, since dense kernels ran"
    gains = [_gain(step) for step in bench["steps"].values()]
    known = [gain for gain in gains if gain is not None]
    if not known or len(known) < len(gains):
        return "no whole call was timed sparse"
    low, high = f"{min(known):.2f}", f"{max(known):.2f}"
    if min(known) <= 1:
        return "no time saved where it runs sparse"
    times = low if low == high else f"{low} to {high}"
    return f"{times} times as fast where it runs sparse ({bench['device']})"


def _gain(step: Mapping[str, Any]) -> float | None:
    """The fastest dense time of a whole call by the fastest sparse one; None if one is missing."""
    times = [step.get(key) for key in _STEP_MS]
    dense, sparse = ([ms for ms in part if ms and ms > 0] for part in (times[:2], times[2:]))
    return min(dense) / min(sparse) if dense and sparse else None
