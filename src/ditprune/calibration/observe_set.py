"""How are the calls of a calibration set observed? Unit by unit, by each worker its own.

What a worker has observed is kept from time to time, so that a run that was stopped goes on.
"""

from __future__ import annotations

import gc
import time
from dataclasses import dataclass, replace
from functools import reduce
from pathlib import Path

from torch import nn

from ditprune.calibration.calibrate import find_unused, observe_calls, warn_of_never_called
from ditprune.calibration.workers import Worker
from ditprune.calls import Call
from ditprune.checkpoints.calibration_set import CalibrationSet
from ditprune.checkpoints.locate import ModelFolder
from ditprune.checkpoints.merge_statistics import merge_statistics
from ditprune.checkpoints.skeleton import folder_fingerprints
from ditprune.checkpoints.statistics_file import (
    Statistics,
    read_statistics_file,
    save_statistics,
)
from ditprune.denoiser.pipeline import load_denoiser
from ditprune.denoiser.placement import Placement
from ditprune.denoiser.replay import fitting
from ditprune.denoiser.rows import to_placement
from ditprune.errors import OutputError, StatisticsError
from ditprune.progress import Progress
from ditprune.targets.blocks import Globs, globs_of
from ditprune.targets.coverage import warn_of_outside

_SAVE_EVERY_S = 20.0  # statistics of a large model are hundreds of megabytes


@dataclass(frozen=True)
class CalibrationRun:
    """One calibration of a folder; `work` is the folder of unfinished work."""

    model: ModelFolder
    call_set: CalibrationSet
    work: Path
    placement: Placement
    worker: Worker
    progress: Progress
    blocks: Globs

    def globs(self, name: str) -> tuple[str, ...]:
        """Where the blocks of a denoiser are; empty if they are found."""
        return globs_of(self.blocks, name)

    def part(self, name: str, rank: int) -> Path:
        """The file of what one worker has observed of one denoiser."""
        return self.work / f"observed-{name}-{rank}-of-{self.worker.world}.safetensors"

    def moved(self, call: Call) -> Call:
        return to_placement(call, self.placement.device, self.placement.dtype)


def unreached(model: ModelFolder, name: str) -> StatisticsError:
    """The error for a calibration set without a call of one denoiser."""
    return StatisticsError(
        f"{model.name}: no calibration call reached its {name}; sample with the pipeline's own "
        "number of steps, or all of the timesteps"
    )


def observe_set(run: CalibrationRun, denoisers: dict[str, nn.Module]) -> dict[str, Statistics]:
    """The statistics of every denoiser over the complete set; empty if not the first worker."""
    gc.collect()  # text encoders and decoders are not needed any more
    statistics = {}
    for name in run.model.denoisers:
        total = _observe_denoiser(run, name, denoisers.pop(name, None))
        if total is not None:
            statistics[name] = total
    return statistics


def _observe_denoiser(
    run: CalibrationRun, name: str, denoiser: nn.Module | None
) -> Statistics | None:
    """The statistics of one denoiser, added up over all workers by the first of them."""
    units = range(run.call_set.num_units)
    first = next((call for unit in units for call in _calls_of(run.call_set, name, unit)), None)
    if first is None:  # every worker sees it, so that none waits for the others
        raise unreached(run.model, name)
    if denoiser is None:
        denoiser = load_denoiser(run.model.denoisers[name], run.placement)
    total = _observe_units(run, name, denoiser)
    run.worker.wait()
    if not run.worker.is_first:
        return None
    others = (_part_of(run, name, rank) for rank in range(1, run.worker.world))
    # Sums are exact in any order, see `column_norm.py`.
    total = reduce(merge_statistics, (part for part in (total, *others) if part is not None))
    unused = find_unused(denoiser, run.moved(first), total.fingerprints)
    warn_of_never_called(total, f"{name}: " if len(run.model.denoisers) > 1 else "")
    warn_of_outside(denoiser, run.globs(name))
    protocol = {**run.call_set.protocol, "denoiser_calls": run.call_set.read(0)[1]}
    return replace(total, protocol=protocol, unused=unused, blocks=run.globs(name))


def _part_of(run: CalibrationRun, name: str, rank: int) -> Statistics | None:
    """What another worker has observed; None if none of its units holds a call of the denoiser.

    Raises OutputError if its file is not there, or not the whole.
    """
    worker = Worker(rank, run.worker.world)
    units = [unit for unit in range(run.call_set.num_units) if worker.owns(unit)]
    file = run.part(name, rank)
    num_done, part = _restore(file)
    if num_done < len(units) and any(_calls_of(run.call_set, name, unit) for unit in units):
        raise OutputError(
            f"{file}: holds {num_done} of the {len(units)} units of process {rank}; put OUT where "
            "all processes can read and write it, and run the same command again"
        )
    return part


def _observe_units(run: CalibrationRun, name: str, denoiser: nn.Module) -> Statistics | None:
    """The statistics of one denoiser over this worker's units.

    They are saved from time to time, so that a run that was stopped goes on, and at the end for
    the first worker.
    """
    fingerprints = folder_fingerprints(run.model.denoisers[name], run.globs(name))
    num_bins = run.call_set.num_bins
    units = [unit for unit in range(run.call_set.num_units) if run.worker.owns(unit)]
    file = run.part(name, run.worker.rank)
    num_done, total = _restore(file)
    saved_at = time.monotonic()
    for number, unit in enumerate(units[num_done:], start=num_done + 1):
        calls = _calls_of(run.call_set, name, unit)
        if calls:
            moved = (run.moved(call) for call in calls)  # one at a time
            with fitting(run.call_set.folder):
                added = observe_calls(denoiser, moved, fingerprints, num_bins)
            total = added if total is None else merge_statistics(total, added)
        is_for_first = number == len(units) and not run.worker.is_first
        is_due = is_for_first or time.monotonic() - saved_at > _SAVE_EVERY_S
        if total is not None and is_due:
            marked = replace(total, protocol={"num_units": number})
            save_statistics({"observed": marked}, file)
            saved_at = time.monotonic()
        run.progress(f"observing {name}", number, len(units))
    return total


def _calls_of(call_set: CalibrationSet, name: str, unit: int) -> list[Call]:
    return [call for call in call_set.read(unit)[0] if call.denoiser == name]


def _restore(file: Path) -> tuple[int, Statistics | None]:
    """The number of this worker's units that were observed before a stop, and their statistics."""
    if not file.is_file():
        return 0, None
    (statistics,) = read_statistics_file(file).values()
    num_units = int(str(statistics.protocol["num_units"]))
    return num_units, replace(statistics, protocol={})
