"""Under what load seconds were measured, and which of them may stand side by side."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

import torch


@dataclass(frozen=True)
class Load:
    """What ran while a batch was drawn.

    Args:
        num_processes: that drew at once, each on batches of its own.
        num_threads: of each of them.
        machine: its processor and its accelerator.
    """

    num_processes: int
    num_threads: int
    machine: str

    @classmethod
    def now(cls, num_processes: int = 1) -> Load:
        """The load of this process and its like."""
        words = [platform.machine(), torch.backends.cpu.get_cpu_capability()]
        words += [torch.cuda.get_device_name()] if torch.cuda.is_available() else []
        machine = f"{' '.join(words)}, CPUs: {os.cpu_count()}"
        return cls(num_processes, torch.get_num_threads(), machine)

    @classmethod
    def of_words(cls, words: Mapping[str, str]) -> Load:
        """From what `words` gave."""
        return cls(int(words["num_processes"]), int(words["num_threads"]), words["machine"])

    def words(self) -> dict[str, str]:
        """For the metadata of a file."""
        return {
            "num_processes": str(self.num_processes), "num_threads": str(self.num_threads),
            "machine": self.machine,
        }  # fmt: skip

    @property
    def text(self) -> str:
        return f"processes: {self.num_processes}, threads: {self.num_threads} ({self.machine})"


@dataclass(frozen=True)
class Batch:
    """One batch of images: how many, how long it took, under what load."""

    num_images: int
    seconds: float
    load: Load


@dataclass(frozen=True)
class Timing:
    """Of one model.

    Args:
        seconds_per_image: the median over full batches, the first left out where there are
            others: it warms up.
        loads: each that batches were drawn under, once.
    """

    seconds_per_image: float
    loads: tuple[Load, ...]


def timing_of(batches: Sequence[Batch], batch_size: int) -> Timing:
    """The seconds of an image, from all batches of a model in their order."""
    full = [one for one in batches if one.num_images == batch_size] or list(batches)
    times = [one.seconds / one.num_images for one in full]
    return Timing(median(times[1:] or times), tuple(dict.fromkeys(one.load for one in batches)))


def why_no_seconds(own: Timing, dense: Timing | None) -> str | None:
    """Why a model's seconds would mislead; None where they do not.

    Args:
        dense: what they would be compared with; None for the dense model itself.
    """
    if len(own.loads) > 1:
        return f"no seconds: its images were drawn under several loads, {_told(own)}"
    if dense is not None and dense.loads != own.loads:
        return (
            f"no seconds: its images were drawn under another load ({_told(own)}) than the dense "
            f"model's ({_told(dense)}); without kept images both are drawn alike"
        )
    return None


def _told(timing: Timing) -> str:
    return " and ".join(load.text for load in timing.loads)
