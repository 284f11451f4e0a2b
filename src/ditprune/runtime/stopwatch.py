"""How long do works take? They run in turn, so that a busy machine slows all of them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

_COLD_BYTES = 64 << 20


def best_seconds(
    works: Sequence[Callable[[], Any]],
    device: str = "cpu",
    num_rounds: int = 5,
    limit_s: float = math.inf,
    cold: torch.Tensor | None = None,
) -> list[float]:
    """The best time of one run of each work, in seconds; other programs can only add to it.

    Args:
        works: each runs once to warm up, then they run in turn.
        device: is synchronised before the clock is read.
        num_rounds: how often each work runs; fewer times, but at least twice, once `limit_s` have
            passed.
        cold: is changed before each run, so that the cache holds nothing that a work reads.
    """
    begun = time.perf_counter()
    for work in works:
        work()
    best = [math.inf] * len(works)
    for done in range(num_rounds):
        if done >= 2 and time.perf_counter() - begun > limit_s:
            break
        for index, work in enumerate(works):
            best[index] = min(best[index], _seconds(work, device, cold))
    return best


def cold_buffer(size_bytes: int, device: str = "cpu") -> torch.Tensor:
    """A tensor for `cold`, no larger than a model of this size."""
    return torch.ones(max(1, min(_COLD_BYTES, size_bytes) // 4), device=device)


def _seconds(work: Callable[[], Any], device: str, cold: torch.Tensor | None) -> float:
    if cold is not None:
        cold.neg_()
    _wait_for(device)
    start = time.perf_counter()
    work()
    _wait_for(device)
    return time.perf_counter() - start


def _wait_for(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
    elif device.startswith("mps"):
        torch.mps.synchronize()
