"""How do several processes share one piece of work? `torchrun` or `accelerate` starts them."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any

import torch
import torch.distributed as dist

from ditprune.method.statistics.collected import Statistics, merge
from ditprune.method.statistics.column_norm import ColumnNorm


@dataclass(frozen=True)
class Worker:
    """One of `world` processes; `rank` counts from 0. The default is a process that works alone."""

    rank: int = 0
    world: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this process writes the results and prints."""
        return self.rank == 0

    def owns(self, unit: int) -> bool:
        """Whether this worker does a unit."""
        return unit % self.world == self.rank

    def wait(self) -> None:
        """Wait until all workers are here."""
        if self.world > 1:
            dist.barrier()

    def gather(self, value: Any) -> list[Any]:
        """The values of all workers, in the order of ranks."""
        if self.world == 1:
            return [value]
        values: list[Any] = [None] * self.world
        dist.all_gather_object(values, value)
        return values


@contextmanager
def joined() -> Iterator[Worker]:
    """Join the group that the environment describes (RANK, WORLD_SIZE …), or work alone.

    Workers exchange small tensors in CPU memory, so the backend is gloo on every machine.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield Worker()
        return
    # The functions of this module hold, as a default argument, the group that exists when they are
    # imported. A later import (by torch._dynamo) would keep our group alive beyond its end, and
    # with it threads that can abort the process when Python exits.
    importlib.import_module("torch.distributed.nn")
    dist.init_process_group("gloo")
    try:
        yield Worker(dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group()


def own_device(device: str) -> str:
    """The GPU of this worker if `cuda` is asked for."""
    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if device == "cuda" else device


def add_up(statistics: Statistics | None, worker: Worker) -> Statistics | None:
    """The statistics of all workers together, on every worker; None if no worker has any.

    All-reduce adds the sums exactly (see `column_norm.update`), so the result does not depend on
    the number of workers.
    """
    if worker.world == 1:
        return statistics
    outlines = [outline for outline in worker.gather(_outline(statistics)) if outline is not None]
    if not outlines:
        return None
    total = reduce(merge, outlines)
    states: dict[int, ColumnNorm] = {}
    for name, outline in total.column_norms.items():
        if id(outline) not in states:
            state = statistics.column_norms.get(name) if statistics is not None else None
            sums = torch.zeros(outline.sum_squares.shape, dtype=torch.float64)
            if state is not None:
                sums += state.sum_squares.cpu()
            dist.all_reduce(sums)
            states[id(outline)] = ColumnNorm(sums, outline.tokens_in_bin)
    norms = {name: states[id(outline)] for name, outline in total.column_norms.items()}
    return replace(total, column_norms=norms)


def _outline(statistics: Statistics | None) -> Statistics | None:
    """Statistics without sums: names, sharing, counts and shapes, which are small to send."""
    if statistics is None:
        return None
    outlines: dict[int, ColumnNorm] = {}
    for state in statistics.column_norms.values():
        # One number that is expanded to a matrix is pickled as one number.
        hollow = torch.zeros((), dtype=torch.float64).expand(state.sum_squares.shape)
        outlines.setdefault(id(state), ColumnNorm(hollow, state.tokens_in_bin))
    norms = {name: outlines[id(state)] for name, state in statistics.column_norms.items()}
    return replace(statistics, column_norms=norms)
