"""How does a model folder get its statistics? Sample calls, observe them, go on after a stop.

Sampling writes denoiser calls to a calibration set. Observing runs them through each denoiser
alone. Both are made of units that are the same whichever process does them, and whenever.
"""

from __future__ import annotations

import gc
import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import reduce
from pathlib import Path
from typing import Any

from torch import nn

from ditprune.calibration.calibrate import find_unused, observe_calls, warn_of_never_called
from ditprune.calibration.draw import conditions
from ditprune.calibration.sample import Sampling, calibration_identity, sample_unit
from ditprune.calibration.workers import Worker
from ditprune.calls import Call
from ditprune.checkpoints.calibration_set import (
    CalibrationSet,
    load_calibration_set,
    start_calibration_set,
)
from ditprune.checkpoints.locate import ModelFolder
from ditprune.checkpoints.merge_statistics import merge_statistics
from ditprune.checkpoints.skeleton import folder_fingerprints
from ditprune.checkpoints.statistics_file import (
    Statistics,
    read_statistics_file,
    save_statistics,
)
from ditprune.denoiser.capture import denoisers_of
from ditprune.denoiser.components import check_components
from ditprune.denoiser.pipeline import load_denoiser, load_pipeline
from ditprune.denoiser.placement import Placement
from ditprune.denoiser.replay import fitting
from ditprune.denoiser.rows import to_placement
from ditprune.errors import OutputError, StatisticsError
from ditprune.progress import Progress, silent
from ditprune.targets.blocks import Globs, check_named, globs_of
from ditprune.targets.coverage import warn_of_outside
from ditprune.writing.files import check_folder
from ditprune.writing.unfinished import (
    check_work,
    continues_work,
    differences,
    finish_work,
    open_work,
    sweep_work,
    work_folder_of,
)

_SAVE_EVERY_S = 20.0  # statistics of a large model are hundreds of megabytes


def calibrate_folder(
    model: ModelFolder, out: Path, sampling: Sampling, placement: Placement | None = None,
    set_folder: Path | None = None, worker: Worker | None = None, overwrite: bool = False,
    progress: Progress = silent, blocks: Globs = (),
) -> None:  # fmt: skip
    """Sample the calls of a model, or load them, observe them and write the statistics.

    Unfinished work lies in a hidden folder beside `out` until `out` is written; the same call of
    this function goes on with it.

    Args:
        out: the statistics file.
        set_folder: where the calibration set is kept; None drops it at the end.
        worker: one of several processes that share the work; all call this function.
        overwrite: replace `out`, or unfinished work with other settings.
        blocks: as for `calibrate`, for every denoiser or by denoiser.

    Raises:
        OutputError, ModelError: as `check_run`.
        TargetError: a glob of `blocks` matches no module, or all of them no layer to prune.
        StatisticsError: no call reaches a denoiser, or the inputs of a layer hold NaN or Inf.
    """
    placement, worker = placement or Placement(), worker or Worker()
    work = work_folder_of(out)
    folder = set_folder or work / "calls"
    check_named(blocks, model.denoisers)
    run_identity = calibration_identity(model, sampling, placement, blocks)
    if worker.is_first:
        sweep_work(out)
        _begin(model, out, sampling, set_folder, run_identity, overwrite)
    worker.wait()
    call_set = load_calibration_set(folder)
    run = _Run(model, call_set, work, placement, worker, progress, blocks)
    try:
        denoisers = _sample_missing(run, sampling)
        worker.wait()
        statistics = _observe_set(run, denoisers)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("run the same command again to go on") from None
    except Exception:
        if not any(work.rglob("*.safetensors")):  # nothing that is done would be lost
            shutil.rmtree(work, ignore_errors=True)
        if len(call_set.missing()) == call_set.num_units:
            shutil.rmtree(folder, ignore_errors=True)
        raise
    if worker.is_first:
        save_statistics(statistics, work / out.name)
        finish_work(out)
    worker.wait()


def check_run(
    model: ModelFolder, out: Path, set_folder: Path | None, run_identity: Mapping[str, Any],
    overwrite: bool,
) -> CalibrationSet | None:  # fmt: skip
    """Refuse what `calibrate_folder` would refuse at its start, and write nothing.

    Returns the calibration set that the run would go on with; None if it would begin one.

    Raises:
        OutputError: `out` exists, or there is unfinished work with other settings.
        ModelError: the model is no pipeline, or the calibration set cannot be read.
    """
    check_work(out, run_identity, overwrite)
    if set_folder is not None:
        return _check_set(set_folder, model, run_identity)
    check_components(model)
    folder = work_folder_of(out) / "calls"
    if folder.exists() and not continues_work(out, run_identity):
        return None  # the run would drop it
    return _check_set(folder, model, run_identity)


def unreached(model: ModelFolder, name: str) -> StatisticsError:
    """The error for a calibration set without a call of one denoiser."""
    return StatisticsError(
        f"{model.name}: no calibration call reached its {name}; sample with the pipeline's own "
        "number of steps, or all of the timesteps"
    )


@dataclass(frozen=True)
class _Run:
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


def _begin(
    model: ModelFolder, out: Path, sampling: Sampling, set_folder: Path | None,
    run_identity: Mapping[str, Any], overwrite: bool,
) -> None:  # fmt: skip
    """Make the folder of unfinished work and the calibration set, unless they are there."""
    check_run(model, out, set_folder, run_identity, overwrite)
    if set_folder is None:  # the set lies in the folder of unfinished work
        open_work(out, run_identity)
    folder = set_folder or work_folder_of(out) / "calls"
    if _check_set(folder, model, run_identity) is None:
        protocol = sampling.protocol(*check_components(model))
        start_calibration_set(folder, sampling.num_units, protocol, run_identity)
    open_work(out, run_identity)


def _check_set(
    folder: Path, model: ModelFolder, run_identity: Mapping[str, Any]
) -> CalibrationSet | None:
    """The set in a folder, if any. Raises OutputError for one begun with other settings."""
    if folder.exists():
        call_set = load_calibration_set(folder)
        changed = differences(call_set.identity, run_identity)
        if changed and call_set.missing():
            raise OutputError(
                f"{folder}: this calibration set is unfinished and was begun with other settings "
                f"({'; '.join(changed)}); give those again to finish it, or remove it"
            )
        return call_set
    check_components(model)
    check_folder(folder, model.root, needs_bytes=0, overwrite=False)
    return None


def _sample_missing(run: _Run, sampling: Sampling) -> dict[str, nn.Module]:
    """Sample this worker's missing units; returns the denoisers if it had to load them."""
    call_set, names = run.call_set, tuple(run.model.denoisers)
    units = [unit for unit in call_set.missing() if run.worker.owns(unit)]
    if not units:
        return {}
    pipeline = load_pipeline(run.model, run.placement)
    conditions(pipeline, sampling.labels, sampling.prompts)  # refuse before the first bar
    for unit in units:
        calls, style = sample_unit(pipeline, sampling, unit, names)
        call_set.write(unit, calls, asdict(style))
        num_done = call_set.num_units - len(call_set.missing())
        run.progress("sampling", num_done, call_set.num_units)
    return denoisers_of(pipeline, names)


def _observe_set(run: _Run, denoisers: dict[str, nn.Module]) -> dict[str, Statistics]:
    """The statistics of every denoiser over the complete set; empty if not the first worker."""
    gc.collect()  # text encoders and decoders are not needed any more
    statistics = {}
    for name in run.model.denoisers:
        total = _observe_denoiser(run, name, denoisers.pop(name, None))
        if total is not None:
            statistics[name] = total
    return statistics


def _observe_denoiser(run: _Run, name: str, denoiser: nn.Module | None) -> Statistics | None:
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


def _part_of(run: _Run, name: str, rank: int) -> Statistics | None:
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


def _observe_units(run: _Run, name: str, denoiser: nn.Module) -> Statistics | None:
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
