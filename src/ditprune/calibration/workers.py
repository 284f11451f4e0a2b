"""Several processes that share one calibration: `torchrun` or `accelerate launch` starts them."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist

from ditprune.method.statistics.collected import Statistics, merge
from ditprune.method.statistics.column_norm import ColumnNorm


@dataclass(frozen=True)
class Worker:
    """One of `world` processes, numbered by `rank` from 0; alone by default."""

    rank: int = 0
    world: int = 1

    @property
    def is_first(self) -> bool:
        """The one that writes results and speaks."""
        return self.rank == 0

    def owns(self, unit: int) -> bool:
        """Whether a piece of work is this worker's."""
        return unit % self.world == self.rank

    def wait(self) -> None:
        """Until all workers are here."""
        if self.world > 1:
            dist.barrier()

    def gather(self, value: Any) -> list[Any]:
        """Everybody's value, in the order of ranks."""
        if self.world == 1:
            return [value]
        values: list[Any] = [None] * self.world
        dist.all_gather_object(values, value)
        return values


@contextmanager
def joined() -> Iterator[Worker]:
    """Join the group that the environment describes (RANK, WORLD_SIZE …), or work alone.

    What travels is small and lies in CPU memory, so the backend is gloo on every machine.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield Worker()
        return
    # Its functions keep, as a default argument, the group that is there when they are first
    # imported. Imported later (by torch._dynamo), they keep ours beyond its end, and with it
    # threads that can abort the process when Python exits.
    importlib.import_module("torch.distributed.nn")
    dist.init_process_group("gloo")
    try:
        yield Worker(dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group()


def own_device(device: str) -> str:
    """A worker's GPU where `cuda` is asked for and every worker has its own."""
    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if device == "cuda" else device


def add_up(statistics: Statistics | None, worker: Worker) -> Statistics | None:
    """The statistics of all workers together, on every worker; None where nobody has any.

    The sums are added by all-reduce, exactly (see `column_norm.update`), so the result does not
    depend on the number of workers.
    """
    if worker.world == 1:
        return statistics
    everyone = [one for one in worker.gather(_outline(statistics)) if one is not None]
    if not everyone:
        return None
    total = everyone[0]
    for other in everyone[1:]:
        total = merge(total, other)
    states: dict[int, ColumnNorm] = {}
    for name, outline in total.column_norms.items():
        if id(outline) not in states:
            own = statistics.column_norms.get(name) if statistics is not None else None
            sums = torch.zeros(outline.sum_squares.shape, dtype=torch.float64)
            if own is not None:
                sums += own.sum_squares.cpu()
            dist.all_reduce(sums)
            states[id(outline)] = ColumnNorm(sums, outline.tokens_in_bin)
    norms = {name: states[id(outline)] for name, outline in total.column_norms.items()}
    return replace(total, column_norms=norms)


def _outline(statistics: Statistics | None) -> Statistics | None:
    """Statistics without their sums: names, sharing, counts and shapes, small enough to send."""
    if statistics is None:
        return None
    outlines: dict[int, ColumnNorm] = {}
    for state in statistics.column_norms.values():
        # One number seen as a whole matrix; pickled as one number.
        hollow = torch.zeros((), dtype=torch.float64).expand(state.sum_squares.shape)
        outlines.setdefault(id(state), ColumnNorm(hollow, state.tokens_in_bin))
    norms = {name: outlines[id(state)] for name, state in statistics.column_norms.items()}
    return replace(statistics, column_norms=norms)
