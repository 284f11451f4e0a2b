"""How long a calibration will take and how much it will need, from a few of its own steps."""

from __future__ import annotations

import re
import resource
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ditprune.calibration.calibrate import observe_calls
from ditprune.calibration.collect import num_bins_of, of_denoiser, unreached
from ditprune.calibration.sample import Sampling, run_unit
from ditprune.calls import Call
from ditprune.checkpoints.calibration_set import CalibrationSet
from ditprune.checkpoints.locate import ModelFolder
from ditprune.denoiser.capture import StepRecorder, denoisers_of
from ditprune.denoiser.pipeline import load_denoiser
from ditprune.denoiser.placement import Placement
from ditprune.denoiser.replay import fitting
from ditprune.denoiser.rows import merge_calls, num_rows, to_placement
from ditprune.method.statistics.collected import Statistics, bin_of

_NUM_TIMED_STEPS = 3  # the first also warms up and is not counted
_NUM_PROBES = 3  # passes that look for layers run in vain


@dataclass(frozen=True)
class Forecast:
    """What a calibration will need: times in seconds, sizes in bytes."""

    sampling_s: float
    observing_s: float
    num_steps: int
    peak_bytes: int
    calls_bytes: int
    statistics_bytes: int


def forecast(
    model: ModelFolder, pipeline: Any, sampling: Sampling, place: Placement,
    missing: Sequence[int] | None = None,
) -> Forecast:  # fmt: skip
    """Run the first steps of the first sampling run, observe what they gave, and extrapolate.

    Args:
        missing: the sampling runs that are left to do; None is all.
    """
    left = range(sampling.num_units) if missing is None else missing
    batch = len(sampling.items(0))
    begun = time.monotonic()
    recorder = StepRecorder(
        pipeline,
        denoisers_of(pipeline, tuple(model.denoisers)),
        batch,
        lambda num_steps: {min(_NUM_TIMED_STEPS, num_steps - 1): range(batch)},
    )
    run_unit(pipeline, sampling, 0, recorder)
    started = recorder.started_s
    step_s = (started[-1] - started[1]) / (len(started) - 2) if len(started) > 2 else (
        time.monotonic() - started[0]
    )  # fmt: skip
    steps = [_num_steps(sampling, unit, recorder.num_steps) for unit in left]
    items = [recorder.taken[row] for row in range(batch)]
    call_s, num_shared, statistics = _observe(model, pipeline, items[0], sampling, place)
    return Forecast(
        sampling_s=len(steps) * (started[0] - begun) + sum(steps) * step_s,
        observing_s=call_s * (sampling.num_samples / num_shared + _NUM_PROBES),
        num_steps=sum(steps),
        peak_bytes=_peak_bytes(place) + 2 * _bytes_of(statistics),
        calls_bytes=sum(_call_bytes(call) for call in items[0])
        * sum(len(sampling.items(unit)) for unit in left),
        statistics_bytes=_bytes_of(statistics),
    )


def forecast_observing(model: ModelFolder, kept: CalibrationSet, place: Placement) -> Forecast:
    """For a complete set, which is only observed: load each denoiser, and time its first call.

    Raises ModelError for calls that it cannot run.
    """
    total_s, size_bytes = 0.0, 0
    for name, folder in model.denoisers.items():
        begun = time.monotonic()
        first, rows = None, 0
        for unit in range(kept.num_units):
            for call in kept.read(unit)[0]:
                if call.denoiser == name:
                    first, rows = first or call, rows + num_rows(call)
        if first is None:
            raise unreached(model, name)
        denoiser, own = load_denoiser(folder, place), of_denoiser(folder)
        total_s += time.monotonic() - begun
        with fitting(kept.folder):
            moved = to_placement(first, place.device, place.dtype)
            call_s, statistics = _timed(denoiser, [moved], own, num_bins_of(kept))
        total_s += call_s * (rows / num_rows(first) + _NUM_PROBES)
        size_bytes += _bytes_of(statistics)
        del denoiser
    return Forecast(0.0, total_s, 0, _peak_bytes(place) + 2 * size_bytes, 0, size_bytes)


def _num_steps(sampling: Sampling, unit: int, num_steps: int) -> int:
    """Steps of a sampling run that ends after the last step that its items want."""
    last = sampling.place(sampling.items(unit)[-1])
    return min(int(last * num_steps), num_steps - 1) + 1


def _observe(
    model: ModelFolder, pipeline: Any, calls: list[Call], sampling: Sampling, place: Placement
) -> tuple[float, int, Statistics]:
    """Seconds to observe items that share a call as they will, how many, and what that gave."""
    call = to_placement(calls[0], place.device, place.dtype)
    denoiser = getattr(pipeline, call.denoiser)
    own = of_denoiser(model.denoisers[call.denoiser])
    items = [bin_of(sampling.place(item), sampling.num_bins) for item in sampling.items(0)]
    num_shared = items.count(items[0])
    shared = merge_calls([call] * num_shared)
    seconds, statistics = _timed(denoiser, shared, own, sampling.num_bins)
    return seconds * len(calls), num_shared, statistics


def _timed(
    denoiser: nn.Module, calls: list[Call], own: dict[str, str], num_bins: int
) -> tuple[float, Statistics]:
    """Seconds to observe these calls once more, and what they gave."""
    statistics = observe_calls(denoiser, calls, own, num_bins)  # warms up
    begun = time.monotonic()
    observe_calls(denoiser, calls, own, num_bins)
    return time.monotonic() - begun, statistics


def _bytes_of(statistics: Statistics) -> int:
    states = {id(state): state.sum_squares for state in statistics.column_norms.values()}
    return sum(sums.numel() * sums.element_size() for sums in states.values())


def _call_bytes(call: Call) -> int:
    return sum(leaf.nbytes for leaf in call.leaves() if isinstance(leaf, Tensor))


def _peak_bytes(place: Placement) -> int:
    """The most memory taken so far: of the device, or of this process."""
    if place.device.startswith("cuda"):
        return torch.cuda.max_memory_allocated(place.device)
    status = Path("/proc/self/status")
    if status.is_file():  # not ru_maxrss, which begins with what the parent had when it forked
        found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text())
        if found:
            return int(found[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
