"""ditprune calibrate: statistics from the model's own sampling runs."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from ditprune.calibration.collect import guard_of, observe_set, sample_missing
from ditprune.calibration.forecast import forecast, forecast_observing
from ditprune.calibration.sample import Sampling
from ditprune.calibration.workers import Worker, joined, own_device
from ditprune.checkpoints import calibration_set, statistics_file
from ditprune.checkpoints.calibration_set import CalibrationSet
from ditprune.checkpoints.locate import ModelFolder, locate
from ditprune.cli import console
from ditprune.cli.inspect import show_findings
from ditprune.cli.options import (
    placement_options,
    read_labels,
    read_pipeline_options,
    read_prompts,
    sampling_options,
)
from ditprune.denoiser.pipeline import check_components, load_pipeline
from ditprune.denoiser.placement import Placement, placement
from ditprune.errors import OutputError, RecipeError
from ditprune.method.statistics.collected import NUM_BINS
from ditprune.reporting import numbers
from ditprune.writing import identity as guard
from ditprune.writing import unfinished
from ditprune.writing.output import check_folder


@click.command()
@click.argument("model")
@click.option("-o", "--out", required=True, type=click.Path(path_type=Path), metavar="FILE")
@click.option("--num-samples", type=int, default=128, show_default=True, help="denoiser inputs")
@click.option(
    "--timesteps", default="uniform", show_default=True, help="uniform, early, middle or late"
)
@sampling_options
@click.option("--batch-size", type=int, default=16, show_default=True, help="drawn together")
@click.option(
    "--num-bins",
    type=int,
    default=NUM_BINS,
    show_default=True,
    help="parts of the way from noise to image to keep norms for",
)
@placement_options
@click.option(
    "--calibration-set",
    "set_folder",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="keep the sampled calls there, or take them from there if it exists",
)
@click.option("--dry-run", is_flag=True, help="time a few steps, print what it would take")
@click.option(
    "--overwrite", is_flag=True, help="replace a file, or an unfinished run, that is there"
)
def calibrate(
    model: str, out: Path, set_folder: Path | None, dry_run: bool,
    overwrite: bool, device: str | None, dtype: str | None, max_memory: str | None,
    labels: str | None, prompts: Path | None, pipeline_options: tuple[str, ...], **options: Any,
) -> None:  # fmt: skip
    """Observe the inputs of every target over samples of MODEL.

    A run that is stopped goes on when the same command is given again. Under `torchrun` or
    `accelerate launch` the processes share the work.
    """
    sampling = Sampling(
        labels=read_labels(labels), prompts=read_prompts(prompts),
        pipeline_options=read_pipeline_options(pipeline_options), **options,
    )  # fmt: skip
    with joined() as worker:
        place = placement(own_device(device or "cpu"), dtype, max_memory)
        found = locate(model)
        _check_kept(set_folder, sampling, _given())
        if dry_run:
            now = guard_of(found, sampling, place)
            kept = _check(found, out, set_folder, now, overwrite)
            _show_forecast(found, sampling, place, kept)
            return
        collect(found, out, sampling, set_folder, place, overwrite, worker)
        if worker.is_first:
            if set_folder is not None:
                console.out.print(f"calibration set: {set_folder}", markup=False)
            console.out.print(f"statistics: {out}", markup=False)
            show_findings(statistics_file.load(out))


def collect(
    model: ModelFolder, out: Path, sampling: Sampling, set_folder: Path | None = None,
    place: Placement | None = None, overwrite: bool = False, worker: Worker | None = None,
) -> None:  # fmt: skip
    """Sample (or load) the calls, replay them with hooks, write the statistics.

    What is done so far lies beside OUT, in a hidden folder, until OUT is written.
    """
    place, worker = place or Placement(), worker or Worker()
    work, folder = unfinished.place_of(out), set_folder or unfinished.place_of(out) / "calls"
    now = guard_of(model, sampling, place)
    if worker.is_first:
        unfinished.sweep(out)
        _check(model, out, set_folder, now, overwrite)
        if set_folder is None:
            unfinished.open_work(out, now)
            _open_set(folder, model, sampling, now)
        else:
            _open_set(folder, model, sampling, now)
            unfinished.open_work(out, now)
    worker.wait()
    kept = calibration_set.load(folder)
    try:
        with console.progress() as progress:
            denoisers = sample_missing(model, kept, sampling, place, worker, progress)
            worker.wait()
            statistics = observe_set(model, kept, work, place, worker, denoisers, progress)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("run the same command again to go on") from None
    except Exception:
        if not any(work.rglob("*.safetensors")):  # nothing is done that would be lost
            shutil.rmtree(work, ignore_errors=True)
        if len(kept.missing()) == kept.num_units:
            shutil.rmtree(folder, ignore_errors=True)
        raise
    if worker.is_first:
        statistics_file.save(statistics, work / out.name)
        unfinished.finish(out)
    worker.wait()


def _check(
    model: ModelFolder, out: Path, set_folder: Path | None, now: Mapping[str, Any], overwrite: bool
) -> CalibrationSet | None:
    """The set that a run goes on with or reads; None where it begins one. Nothing is written.

    Raises OutputError, ModelError for what the run would refuse.
    """
    unfinished.check_work(out, now, overwrite)
    if set_folder is not None:
        return _check_set(set_folder, model, now)
    check_components(model)
    folder = unfinished.place_of(out) / "calls"
    if folder.exists() and not unfinished.goes_on(out, now):
        return None  # for it is dropped
    return _check_set(folder, model, now)


def _check_set(folder: Path, model: ModelFolder, now: Mapping[str, Any]) -> CalibrationSet | None:
    """The set that is there. Raises OutputError for one that other settings began."""
    if folder.exists():
        kept = calibration_set.load(folder)
        changed = guard.differences(kept.guard, now) if kept.missing() else []
        if changed:
            raise OutputError(
                f"{folder}: this calibration set is unfinished and was begun with other settings "
                f"({'; '.join(changed)}); give those again to finish it, or remove it"
            )
        return kept
    check_components(model)
    check_folder(folder, model.root, needs_bytes=0, overwrite=False)
    return None


def _open_set(folder: Path, model: ModelFolder, sampling: Sampling, now: Mapping[str, Any]) -> None:
    """The set to fill or to read, begun where there is none."""
    if _check_set(folder, model, now) is None:
        protocol = sampling.protocol(*check_components(model))
        calibration_set.start(folder, sampling.num_units, protocol, now)


def _check_kept(folder: Path | None, sampling: Sampling, given: set[str]) -> None:
    """Refuse options that a complete set contradicts. Raises RecipeError."""
    if folder is None or not (folder / calibration_set.HEADER).is_file():
        return
    kept = calibration_set.load(folder)
    if kept.missing():
        return
    for word in sorted(given & asdict(sampling).keys()):
        asked = getattr(sampling, word)
        asked = list(asked) if isinstance(asked, tuple) else asked
        if word in kept.protocol and kept.protocol[word] != asked:
            raise RecipeError(
                f"--{word.replace('_', '-')}: the calibration set {folder} was sampled with "
                f"{kept.protocol[word]}; leave the option out, or sample another set"
            )


def _given() -> set[str]:
    """The options that stand on the command line."""
    context = click.get_current_context()
    return {
        name
        for name in context.params
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE
    }


def _show_forecast(
    model: ModelFolder, sampling: Sampling, place: Placement, kept: CalibrationSet | None
) -> None:
    """What is left to do, given the set so far."""
    start_s, begun = time.process_time(), time.monotonic()
    missing = range(sampling.num_units) if kept is None else kept.missing()
    if kept is not None and not missing:
        expected = forecast_observing(model, kept, place)
        console.out.print(
            f"sampling: nothing, the calibration set {kept.folder} is complete\n"
            f"loading the denoiser and observing it: about {numbers.duration(expected.observing_s)}"
            f"\nin all: about {numbers.duration(start_s + expected.observing_s)}\n"
            f"peak memory: about {numbers.size(expected.peak_bytes)}\n"
            f"writes: statistics {numbers.size(expected.statistics_bytes)}\n"
            "nothing was written",
            markup=False,
        )
        return
    num_samples = sum(len(sampling.items(unit)) for unit in missing)
    done = f"of {kept.num_units} " if kept is not None else ""
    pipeline = load_pipeline(model, place)
    loading_s = start_s + time.monotonic() - begun
    expected = forecast(model, pipeline, sampling, place, missing)
    total_s = loading_s + expected.sampling_s + expected.observing_s
    console.out.print(
        f"loading the pipeline: about {numbers.duration(loading_s)}\n"
        f"{num_samples} samples in {len(missing)} {done}sampling runs, "
        f"{expected.num_steps} denoiser steps: about {numbers.duration(expected.sampling_s)}\n"
        f"observing all {sampling.num_samples}: about {numbers.duration(expected.observing_s)}\n"
        f"in all: about {numbers.duration(total_s)}\n"
        f"peak memory: about {numbers.size(expected.peak_bytes)}\n"
        f"writes: calls {numbers.size(expected.calls_bytes)}, "
        f"statistics {numbers.size(expected.statistics_bytes)}\n"
        "nothing was written",
        markup=False,
    )
