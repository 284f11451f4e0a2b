"""ditprune calibrate: statistics from the model's own sampling runs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from ditprune.calibration.calibrate import calibrate as observe
from ditprune.calibration.pipeline import conditions, load_denoiser, load_pipeline
from ditprune.calibration.sample import Sampling, sample_calls
from ditprune.calls import DENOISER, Call
from ditprune.checkpoints import calibration_set, statistics_file
from ditprune.checkpoints.locate import ModelFolder, locate
from ditprune.checkpoints.output import check_file, check_folder
from ditprune.checkpoints.skeleton import skeleton
from ditprune.cli import console
from ditprune.cli.options import read_labels, read_prompts, sampling_options
from ditprune.errors import ModelError


@click.command()
@click.argument("model")
@click.option("-o", "--out", required=True, type=click.Path(path_type=Path), metavar="FILE")
@click.option("--num-samples", type=int, default=128, show_default=True, help="denoiser inputs")
@click.option("--timesteps", default="uniform", show_default=True, help="uniform, early or late")
@sampling_options
@click.option(
    "--calibration-set",
    "set_folder",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="keep the sampled calls there, or take them from there if it exists",
)
@click.option("--overwrite", is_flag=True, help="replace an existing file")
def calibrate(
    model: str, out: Path, set_folder: Path | None, overwrite: bool, labels: str | None,
    prompts: Path | None, **options: Any,
) -> None:  # fmt: skip
    """Observe the inputs of every target over samples of MODEL."""
    sampling = Sampling(labels=read_labels(labels), prompts=read_prompts(prompts), **options)
    check_file(out, overwrite)
    collect(locate(model), out, sampling, set_folder)
    if set_folder is not None:
        console.out.print(f"calibration set: {set_folder}", markup=False)
    console.out.print(f"statistics: {out}", markup=False)


def collect(
    model: ModelFolder, out: Path, sampling: Sampling, set_folder: Path | None = None
) -> None:
    """Sample (or load) the calls, replay them with hooks, write the statistics."""
    if set_folder is not None and set_folder.exists():
        calls, protocol = calibration_set.load(set_folder)
        denoiser = load_denoiser(model, type(skeleton(model.denoiser)))
    else:
        if set_folder is not None:
            check_folder(set_folder, model.root, needs_bytes=0, overwrite=False)
        pipeline = load_pipeline(model)
        calls, protocol = _sample(pipeline, sampling), sampling.protocol(pipeline)
        denoiser = pipeline.transformer
        if set_folder is not None:
            calibration_set.save(calls, protocol, set_folder)
    with console.progress() as report:

        def counted() -> Iterator[Call]:
            for done, call in enumerate(calls, start=1):
                yield call
                report("observing calls", done, len(calls))

        try:
            statistics = observe(denoiser, counted(), protocol)
        except (RuntimeError, TypeError, ValueError, IndexError) as error:
            reason = (str(error).strip() or repr(error)).splitlines()[0]
            raise ModelError(
                f"{model.name}: the denoiser cannot run the calibration calls ({reason}); "
                "sample them from this model"
            ) from None
    statistics_file.save({DENOISER: statistics}, out)


def _sample(pipeline: Any, sampling: Sampling) -> list[Call]:
    calls: list[Call] = []
    conditions(pipeline, sampling.labels, sampling.prompts)  # refuses before the first bar
    with console.progress() as report:
        report("sampling", 0, sampling.num_samples)
        for number, batch in enumerate(sample_calls(pipeline, sampling), start=1):
            calls += batch
            done = min(number * sampling.batch_size, sampling.num_samples)
            report("sampling", done, sampling.num_samples)
    return calls
