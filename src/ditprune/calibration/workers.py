"""How do several processes share one piece of work? `torchrun` or `accelerate` starts them."""

from __future__ import annotations

import importlib
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import psutil
import torch.distributed as dist

from ditprune.errors import EndedError, reason_of

_LONGEST = timedelta(days=30)  # a process waits for the slowest
_NOTICED_S = 3.0  # within so long the system tells that a process has ended


@dataclass(frozen=True)
class Worker:
    """One of `world` processes; `rank` counts from 0. The default is a process that works alone.

    Args:
        processes: machine and process id of each.
    """

    rank: int = 0
    world: int = 1
    processes: tuple[tuple[str, int], ...] = ()

    @property
    def is_first(self) -> bool:
        """Whether this process writes the results and prints."""
        return self.rank == 0

    def owns(self, unit: int) -> bool:
        """Whether this worker does a unit."""
        return unit % self.world == self.rank

    def wait(self) -> None:
        """Wait until all workers are here. Raises EndedError where one has ended."""
        if self.world > 1:
            with self._together():
                dist.barrier()

    def gather(self, value: Any) -> list[Any]:
        """The values of all workers, in the order of ranks. Raises as `wait`."""
        if self.world == 1:
            return [value]
        values: list[Any] = [None] * self.world
        with self._together():
            dist.all_gather_object(values, value)
        return values

    @contextmanager
    def _together(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            raise EndedError(
                f"{self._ended()} has ended, and process {self.rank} cannot go on without it "
                f"({reason_of(error):.80}); what is done stays: give the same command again"
            ) from None

    def _ended(self) -> str:
        """Which process is not there any more, as far as this machine knows."""
        deadline_s = time.monotonic() + _NOTICED_S
        while time.monotonic() < deadline_s:
            for rank, (machine, process) in enumerate(self.processes):
                if machine == socket.gethostname() and not _is_alive(process):
                    return f"process {rank} of {self.world} (id {process})"
            time.sleep(0.05)
        return "a process on another machine"


def _is_alive(process: int) -> bool:
    try:
        return psutil.Process(process).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


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
    dist.init_process_group("gloo", timeout=_LONGEST)
    try:
        worker = Worker(dist.get_rank(), dist.get_world_size())
        processes = worker.gather((socket.gethostname(), os.getpid()))
        yield replace(worker, processes=tuple(processes))
    finally:
        dist.destroy_process_group()


def own_device(device: str) -> str:
    """The GPU of this worker if `cuda` is asked for."""
    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if device == "cuda" else device
