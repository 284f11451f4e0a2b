"""How long works take beside each other: in turn, so that a busy machine hits all of them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

COLD_BYTES = 64 << 20


def best_seconds(
    works: Sequence[Callable[[], Any]],
    device: str = "cpu",
    num_rounds: int = 5,
    limit_s: float = math.inf,
    cold: torch.Tensor | None = None,
    num_at_least: int = 2,
) -> list[float]:
    """The best time of one run of each work, in seconds; other programs only ever add to it.

    Args:
        works: run once each to warm up, then in turn.
        device: waited for before the clock is read.
        num_rounds: how often each is run, fewer once `limit_s` have passed, but `num_at_least`.
        cold: changed before each run, so that the cache holds none of what a work reads.
    """
    begun = time.perf_counter()
    for work in works:
        work()
    best = [math.inf] * len(works)
    for done in range(num_rounds):
        if done >= num_at_least and time.perf_counter() - begun > limit_s:
            break
        for index, work in enumerate(works):
            best[index] = min(best[index], _seconds(work, device, cold))
    return best


def cold_buffer(size_bytes: int, device: str = "cpu") -> torch.Tensor:
    """What `cold` may be, beside a model of this size: no larger than it needs to be."""
    return torch.ones(max(1, min(COLD_BYTES, size_bytes) // 4), device=device)


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
