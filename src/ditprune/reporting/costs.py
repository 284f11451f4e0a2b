"""What does a pruned model save? Nothing counts as saved that nothing skipped.

An evaluation draws images with dense kernels, whatever the zeros. So their seconds differ by chance
alone, and no percentage stands beside them. Time is saved where `ditprune bench` measured it.
Smaller layers take less time with any kernels, so a shrunk model's seconds stand beside the dense
model's.
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
    shrunk = _shrunk(model["accounting"], dense["accounting"]) if is_smaller(model, dense) else ""
    removed = f"{formats.percent(model['sparsity'])} of the target weights removed"
    if shrunk:
        removed = f"{shrunk}, {removed}" if model["sparsity"] else shrunk
    mine, theirs = model["accounting"]["size_bytes"], dense["accounting"]["size_bytes"]
    change = formats.change(mine, theirs)
    sizes = {"": "", "same": f"{formats.size(mine)}, the dense model's size"}
    size = sizes.get(change, f"{formats.size(mine)} ({change})")
    speed = _measured_speed(model, dense) if shrunk else _speed(model["name"], bench)
    return "; ".join(part for part in (removed, size, speed) if part)


def is_smaller(model: Mapping[str, Any], dense: Mapping[str, Any]) -> bool:
    """Whether the layers of a model are smaller than those of its dense one."""
    mine, theirs = (row["accounting"]["num_parameters"] for row in (model, dense))
    return bool(mine < theirs)


def _shrunk(mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> str:
    """How much less a smaller model is."""
    words = {"num_parameters": "parameters", "macs_per_step": "MACs a step"}
    parts = [
        f"{formats.percent(1 - mine[key] / theirs[key])} fewer {word}"
        for key, word in words.items()
        if mine[key] and theirs[key]
    ]
    return " and ".join(parts)


def _measured_speed(model: Mapping[str, Any], dense: Mapping[str, Any]) -> str:
    mine, theirs = (row["accounting"]["seconds_per_image"] for row in (model, dense))
    return (
        f"an image in {mine / theirs:.2f} of the dense model's seconds" if mine and theirs else ""
    )


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
