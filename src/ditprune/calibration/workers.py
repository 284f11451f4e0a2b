"""How do several processes share one piece of work? `torchrun` or `accelerate` starts them."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch.distributed as dist


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

    Workers exchange small values in CPU memory, so the backend is gloo on every machine.
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
