"""Under which load were seconds measured, and which of them can be compared?"""

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
        num_processes: processes that drew at the same time, each its own batches.
        num_threads: threads of each process.
        machine: the processor and the accelerator.
    """

    num_processes: int
    num_threads: int
    machine: str

    @classmethod
    def now(cls, num_processes: int = 1) -> Load:
        """The load of this process, if there are so many like it."""
        words = [platform.machine(), torch.backends.cpu.get_cpu_capability()]
        words += [torch.cuda.get_device_name()] if torch.cuda.is_available() else []
        machine = f"{' '.join(words)}, CPUs: {os.cpu_count()}"
        return cls(num_processes, torch.get_num_threads(), machine)

    @classmethod
    def of_words(cls, words: Mapping[str, str]) -> Load:
        """The inverse of `words`."""
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
class Timing:
    """How long the images of one model took.

    Args:
        seconds_per_image: the median over full batches, without the first, which warms up.
        loads: the different loads under which batches were drawn.
    """

    seconds_per_image: float
    loads: tuple[Load, ...]


def timing_of(batches: Sequence[tuple[int, float, Load]], batch_size: int) -> Timing:
    """The timing of a model from all its batches: how many images, seconds, load of each."""
    full = [batch for batch in batches if batch[0] == batch_size] or list(batches)
    times = [seconds / num_images for num_images, seconds, _ in full]
    return Timing(median(times[1:] or times), tuple(dict.fromkeys(load for *_, load in batches)))


def why_no_seconds(timing: Timing, dense: Timing) -> str | None:
    """Why the seconds of a model would mislead beside those of the dense model; None if not."""
    if len(timing.loads) > 1:
        return f"no seconds: its images were drawn under several loads, {_text(timing)}"
    if timing.loads != dense.loads:
        return (
            f"no seconds: its images were drawn under another load ({_text(timing)}) than the "
            f"dense model's ({_text(dense)}); without kept images both are drawn alike"
        )
    return None


def _text(timing: Timing) -> str:
    return " and ".join(load.text for load in timing.loads)
