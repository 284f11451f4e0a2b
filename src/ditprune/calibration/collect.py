"""How does a model folder get its statistics? Sample calls, observe them, go on after a stop.

Sampling writes denoiser calls to a calibration set. Observing runs them through each denoiser
alone. Both are made of units that are the same whichever process does them, and whenever.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import nn

from ditprune.calibration.draw import conditions
from ditprune.calibration.observe_set import CalibrationRun, observe_set
from ditprune.calibration.sample import Sampling, calibration_identity, sample_unit
from ditprune.calibration.workers import Worker
from ditprune.checkpoints.calibration_set import (
    CalibrationSet,
    load_calibration_set,
    start_calibration_set,
)
from ditprune.checkpoints.locate import ModelFolder
from ditprune.checkpoints.own_files import check_no_own_file
from ditprune.checkpoints.statistics_file import save_statistics
from ditprune.denoiser.capture import denoisers_of
from ditprune.denoiser.components import check_components
from ditprune.denoiser.pipeline import load_pipeline
from ditprune.denoiser.placement import Placement
from ditprune.errors import ModelError, OutputError
from ditprune.progress import Progress, silent
from ditprune.targets.blocks import Globs, check_named
from ditprune.writing.files import check_file, check_folder, ensure_folder
from ditprune.writing.lock import locked
from ditprune.writing.unfinished import (
    check_work,
    continues_work,
    differences,
    finish_work,
    open_work,
    sweep_work,
    work_folder_of,
)


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
    check_named(blocks, model.denoisers)
    run_identity = calibration_identity(model, sampling, placement, blocks)
    with _held(out, set_folder, worker):
        was_there = out.exists()
        if worker.is_first:
            sweep_work(out)
            _begin(model, out, sampling, set_folder, run_identity, overwrite)
        worker.wait()
        work = work_folder_of(out)
        call_set = load_calibration_set(set_folder or work / "calls")
        run = CalibrationRun(model, call_set, work, placement, worker, progress, blocks)
        statistics = _collected(run, sampling, run_identity)
        if worker.is_first:
            save_statistics(statistics, work / out.name)
            if not was_there:
                check_file(out, overwrite)  # nobody else has made one meanwhile
            finish_work(out)
        worker.wait()


def sample_folder(
    model: ModelFolder, set_folder: Path, sampling: Sampling, placement: Placement,
    progress: Progress = silent, blocks: Globs = (),
) -> CalibrationSet:  # fmt: skip
    """Sample the calls of a model into a folder, or go on with it; no statistics are made.

    Raises:
        OutputError: the folder holds calls that were sampled with other settings.
        ModelError: the model is no pipeline, or the calibration set cannot be read.
    """
    run_identity = calibration_identity(model, sampling, placement, blocks)
    ensure_folder(set_folder.parent)
    with locked(set_folder):
        call_set = _check_set(set_folder, model, run_identity)
        if call_set is None:
            protocol = sampling.protocol(*check_components(model))
            call_set = start_calibration_set(set_folder, sampling.num_units, protocol, run_identity)
        elif changed := differences(_of_calls(call_set.identity), _of_calls(run_identity)):
            raise OutputError(
                f"{set_folder}: its calls were sampled with other settings ({'; '.join(changed)}); "
                "pass --calibration-set to take them all the same, or remove it"
            )
        run = CalibrationRun(model, call_set, set_folder, placement, Worker(), progress, blocks)
        try:
            _sample_missing(run, sampling)
        except Exception:
            if len(call_set.missing()) == call_set.num_units:
                shutil.rmtree(set_folder, ignore_errors=True)
            raise
    return call_set


def _of_calls(run_identity: Mapping[str, Any]) -> dict[str, Any]:
    """What calls depend on, whoever samples them."""
    return {key: run_identity.get(key) for key in ("weights", "sampling", "placement")}


def _collected(
    run: CalibrationRun, sampling: Sampling, run_identity: Mapping[str, Any]
) -> dict[str, Any]:
    """The statistics of each denoiser; what is done stays for the next run if it fails."""
    call_set = run.call_set
    try:
        denoisers = _sample_missing(run, sampling)
        run.worker.wait()
        statistics = observe_set(run, denoisers)
        if calibration_identity(run.model, sampling, run.placement, run.blocks) != run_identity:
            raise ModelError(
                f"{run.model.name}: its files were changed while it was sampled; calibrate again "
                "with --overwrite when nothing writes there"
            )
    except KeyboardInterrupt:
        raise KeyboardInterrupt("run the same command again to go on") from None
    except Exception:
        if not any(run.work.rglob("*.safetensors")):  # nothing that is done would be lost
            shutil.rmtree(run.work, ignore_errors=True)
        if len(call_set.missing()) == call_set.num_units:
            shutil.rmtree(call_set.folder, ignore_errors=True)
        raise
    return statistics


@contextmanager
def _held(out: Path, set_folder: Path | None, worker: Worker) -> Iterator[None]:
    """Keep other runs away from the statistics, and from calls that are still to be sampled.

    Raises OutputError.
    """
    with ExitStack() as stack:
        if worker.is_first:
            check_file(out, overwrite=True)  # before a lock is made beside it
            stack.enter_context(locked(out))
            if set_folder is not None and not _is_whole(set_folder):
                stack.enter_context(locked(set_folder))
        yield


def _is_whole(folder: Path) -> bool:
    return folder.exists() and not load_calibration_set(folder).missing()


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
    check_no_own_file(out, model)
    if set_folder is not None:
        return _check_set(set_folder, model, run_identity)
    check_components(model)
    folder = work_folder_of(out) / "calls"
    if folder.exists() and not continues_work(out, run_identity):
        return None  # the run would drop it
    return _check_set(folder, model, run_identity)


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


def _sample_missing(run: CalibrationRun, sampling: Sampling) -> dict[str, nn.Module]:
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
