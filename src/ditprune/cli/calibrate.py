"""ditprune calibrate: statistics from the model's own sampling runs."""

from __future__ import annotations

import time
from collections.abc import Collection
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from ditprune.calibration.collect import calibrate_folder, check_run
from ditprune.calibration.forecast import CalibrationForecast, forecast_calibration
from ditprune.calibration.sample import Sampling, calibration_identity
from ditprune.calibration.workers import joined, own_device
from ditprune.calls import NUM_BINS
from ditprune.checkpoints.calibration_set import HEADER, CalibrationSet, load_calibration_set
from ditprune.checkpoints.locate import locate
from ditprune.checkpoints.statistics_file import read_statistics_file
from ditprune.cli import console
from ditprune.cli.globs import blocks_option, read_globs
from ditprune.cli.groups import GroupedCommand
from ditprune.cli.options import (
    PATH,
    placement_options,
    read_labels,
    read_pipeline_options,
    read_prompts,
    sampling_options,
)
from ditprune.cli.plans import show_findings
from ditprune.denoiser.placement import Placement
from ditprune.errors import RecipeError
from ditprune.reporting import formats
from ditprune.writing.unfinished import check_out


@click.command(cls=GroupedCommand)
@click.argument("model")
@click.option("-o", "--out", required=True, type=PATH, metavar="FILE")
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
@blocks_option
@placement_options
@click.option(
    "--calibration-set",
    "set_folder",
    type=PATH,
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
    labels: str | None, prompts: Path | None, pipeline_options: tuple[str, ...],
    blocks: tuple[str, ...], **options: Any,
) -> None:  # fmt: skip
    """Observe the inputs of every target over samples of MODEL.

    A run that is stopped goes on when the same command is given again. Under `torchrun` or
    `accelerate launch` the processes share the work.
    """
    sampling = Sampling(
        labels=read_labels(labels), prompts=read_prompts(prompts),
        pipeline_options=read_pipeline_options(pipeline_options), **options,
    )  # fmt: skip
    globs = read_globs("blocks", blocks)
    with joined() as worker:
        placement = Placement.of(own_device(device or "cpu"), dtype, max_memory)
        check_out(out, overwrite)
        folder = locate(model)
        _check_given_options(set_folder, sampling, _given_options())
        if dry_run:
            identity = calibration_identity(folder, sampling, placement, globs)
            call_set = check_run(folder, out, set_folder, identity, overwrite)
            start_s = time.process_time()
            forecast = forecast_calibration(folder, sampling, placement, call_set, globs)
            _show_forecast(start_s, sampling, call_set, forecast)
            return
        with console.progress() as progress:
            calibrate_folder(
                folder, out, sampling, placement, set_folder, worker, overwrite, progress, globs
            )
        if worker.is_first:
            console.is_done(out)
            if set_folder is not None:
                console.show([f"calibration set: {set_folder}"])
            console.show([f"statistics: {out}"])
            show_findings(read_statistics_file(out))


def _given_options() -> set[str]:
    """The options that stand on the command line."""
    context, source = click.get_current_context(), ParameterSource.COMMANDLINE
    return {name for name in context.params if context.get_parameter_source(name) is source}


def _show_forecast(
    start_s: float, sampling: Sampling, call_set: CalibrationSet | None,
    forecast: CalibrationForecast,
) -> None:  # fmt: skip
    loading_s = start_s + forecast.loading_s
    total_s = loading_s + forecast.sampling_s + forecast.observing_s
    if call_set is not None and not forecast.num_units:
        work = [
            f"sampling: nothing, the calibration set {call_set.folder} is complete",
            "loading the denoiser and observing it: about "
            f"{formats.duration(forecast.observing_s)}",
        ]
        calls = ""
    else:
        of_all = f"of {call_set.num_units} " if call_set is not None else ""
        work = [
            f"loading the pipeline: about {formats.duration(loading_s)}",
            f"{forecast.num_samples} samples in {forecast.num_units} {of_all}sampling runs, "
            f"{forecast.num_steps} denoiser steps: about {formats.duration(forecast.sampling_s)}",
            f"observing all {sampling.num_samples}: about {formats.duration(forecast.observing_s)}",
        ]
        calls = f"calls {formats.size(forecast.calls_bytes)}, "
    console.show([
        *work,
        f"in all: about {formats.duration(total_s)}",
        f"peak memory: about {formats.size(forecast.peak_bytes)}",
        f"writes: {calls}statistics {formats.size(forecast.statistics_bytes)}",
        "nothing was written",
    ])  # fmt: skip


def _check_given_options(
    set_folder: Path | None, sampling: Sampling, given: Collection[str]
) -> None:
    """Raises RecipeError if a complete calibration set was sampled with other options.

    Args:
        given: the names of the options that the user gave.
    """
    if set_folder is None or not (set_folder / HEADER).is_file():
        return
    call_set = load_calibration_set(set_folder)
    if call_set.missing():
        return
    for word in sorted(given & asdict(sampling).keys()):
        value = getattr(sampling, word)
        value = list(value) if isinstance(value, tuple) else value
        if word in call_set.protocol and call_set.protocol[word] != value:
            raise RecipeError(
                f"--{word.replace('_', '-')}: the calibration set {set_folder} was sampled with "
                f"{call_set.protocol[word]}; leave the option out, or sample another set"
            )
