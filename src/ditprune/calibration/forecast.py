"""What will a calibration take? A few of its own steps and calls tell."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor, nn

from ditprune.calibration.calibrate import observe_calls
from ditprune.calibration.observe_set import unreached
from ditprune.calibration.sample import Sampling, run_unit
from ditprune.calls import Call, bin_of
from ditprune.checkpoints.calibration_set import CalibrationSet
from ditprune.checkpoints.locate import ModelFolder
from ditprune.checkpoints.skeleton import folder_fingerprints
from ditprune.denoiser.capture import denoisers_of
from ditprune.denoiser.pipeline import load_denoiser, load_pipeline
from ditprune.denoiser.placement import Placement
from ditprune.denoiser.replay import fitting
from ditprune.denoiser.rows import merge_calls, num_rows, to_placement
from ditprune.denoiser.steps import StepRecorder
from ditprune.targets.blocks import Globs, globs_of

_NUM_TIMED_STEPS = 3  # the first also warms up and is not counted
_NUM_PROBES = 3  # passes that look for layers run in vain


@dataclass(frozen=True)
class CalibrationForecast:
    """What is left to do in a calibration: times in seconds, sizes in bytes.

    Args:
        loading_s: loading the pipeline; the denoisers alone count in `observing_s`.
        num_samples, num_units, num_steps: items, sampling runs and denoiser steps to sample.
    """

    loading_s: float
    sampling_s: float
    observing_s: float
    num_samples: int
    num_units: int
    num_steps: int
    peak_bytes: int
    calls_bytes: int
    statistics_bytes: int


def forecast_calibration(
    model: ModelFolder, sampling: Sampling, placement: Placement,
    call_set: CalibrationSet | None = None, blocks: Globs = (),
) -> CalibrationForecast:  # fmt: skip
    """Run the first steps of the first sampling run, observe their calls, and extrapolate.

    With a complete set, nothing is sampled: load each denoiser and time its first call.

    Raises ModelError if a denoiser cannot be loaded or cannot run its calls.
    """
    units = range(sampling.num_units) if call_set is None else call_set.missing()
    if call_set is not None and not units:
        return _forecast_observing(model, call_set, placement, blocks)
    begin = time.monotonic()
    pipeline = load_pipeline(model, placement)
    loading_s = time.monotonic() - begin
    batch_size = len(sampling.items(0))
    begin = time.monotonic()
    recorder = StepRecorder(
        pipeline,
        denoisers_of(pipeline, tuple(model.denoisers)),
        batch_size,
        lambda num_steps: {min(_NUM_TIMED_STEPS, num_steps - 1): range(batch_size)},
    )
    run_unit(pipeline, sampling, 0, recorder)
    started = recorder.started_s
    step_s = (started[-1] - started[1]) / (len(started) - 2) if len(started) > 2 else (
        time.monotonic() - started[0]
    )  # fmt: skip
    num_steps = sum(_num_steps(sampling, unit, recorder.num_steps) for unit in units)
    calls = recorder.taken[0]
    call_s, num_shared, statistics_bytes = _observe(
        model, pipeline, calls, sampling, placement, blocks
    )
    num_samples = sum(len(sampling.items(unit)) for unit in units)
    return CalibrationForecast(
        loading_s=loading_s,
        sampling_s=len(units) * (started[0] - begin) + num_steps * step_s,
        observing_s=call_s * (sampling.num_samples / num_shared + _NUM_PROBES),
        num_samples=num_samples,
        num_units=len(units),
        num_steps=num_steps,
        peak_bytes=_peak_bytes(placement) + 2 * statistics_bytes,
        calls_bytes=_bytes_of(leaf for call in calls for leaf in call.leaves()) * num_samples,
        statistics_bytes=statistics_bytes,
    )


def _forecast_observing(
    model: ModelFolder, call_set: CalibrationSet, placement: Placement, blocks: Globs
) -> CalibrationForecast:
    total_s, size_bytes = 0.0, 0
    for name, folder in model.denoisers.items():
        begin = time.monotonic()
        first, rows = None, 0
        for unit in range(call_set.num_units):
            for call in call_set.read(unit)[0]:
                if call.denoiser == name:
                    first, rows = first or call, rows + num_rows(call)
        if first is None:
            raise unreached(model, name)
        denoiser = load_denoiser(folder, placement)
        fingerprints = folder_fingerprints(folder, globs_of(blocks, name))
        total_s += time.monotonic() - begin
        with fitting(call_set.folder):
            moved = to_placement(first, placement.device, placement.dtype)
            call_s, added_bytes = _timed(denoiser, [moved], fingerprints, call_set.num_bins)
        total_s += call_s * (rows / num_rows(first) + _NUM_PROBES)
        size_bytes += added_bytes
        del denoiser
    peak_bytes = _peak_bytes(placement) + 2 * size_bytes
    return CalibrationForecast(0.0, 0.0, total_s, 0, 0, 0, peak_bytes, 0, size_bytes)


def _num_steps(sampling: Sampling, unit: int, num_steps: int) -> int:
    """Steps of a sampling run, which ends after the last step that its items want."""
    last = sampling.progress_t(sampling.items(unit)[-1])
    return min(int(last * num_steps), num_steps - 1) + 1


def _observe(
    model: ModelFolder, pipeline: Any, calls: list[Call], sampling: Sampling,
    placement: Placement, blocks: Globs = (),
) -> tuple[float, int, int]:  # fmt: skip
    """Observe items that share calls as they will; returns seconds, items and `_timed`'s bytes."""
    call = to_placement(calls[0], placement.device, placement.dtype)
    denoiser = getattr(pipeline, call.denoiser)
    folder, globs = model.denoisers[call.denoiser], globs_of(blocks, call.denoiser)
    fingerprints = folder_fingerprints(folder, globs)
    bins = [bin_of(sampling.progress_t(item), sampling.num_bins) for item in sampling.items(0)]
    num_shared = bins.count(bins[0])
    shared = merge_calls([call] * num_shared)
    seconds, size_bytes = _timed(denoiser, shared, fingerprints, sampling.num_bins)
    return seconds * len(calls), num_shared, size_bytes


def _timed(
    denoiser: nn.Module, calls: list[Call], fingerprints: dict[str, str], num_bins: int
) -> tuple[float, int]:
    """Observe calls twice; returns the seconds of the second pass and the statistics' bytes."""
    statistics = observe_calls(denoiser, calls, fingerprints, num_bins)  # warms up
    begin = time.monotonic()
    observe_calls(denoiser, calls, fingerprints, num_bins)
    seconds = time.monotonic() - begin
    sums = {id(state): state.sum_squares for state in statistics.column_norms.values()}
    return seconds, _bytes_of(sums.values())


def _bytes_of(values: Iterable[Any]) -> int:
    return sum(value.nbytes for value in values if isinstance(value, Tensor))


def _peak_bytes(placement: Placement) -> int:
    """The most memory taken so far on the GPU, or by this process."""
    if placement.device.startswith("cuda"):
        return torch.cuda.max_memory_allocated(placement.device)
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    status = Path("/proc/self/status")
    if status.is_file():  # ru_maxrss begins with what the parent had when it forked
        match = re.search(r"VmHWM:\s+(\d+) kB", status.read_text())
        if match:
            return int(match[1]) * 1024
    import resource  # which Windows does not have

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
