"""ditprune reproduce: the paper's studies, one command each."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from ditprune.calibration.sample import Sampling
from ditprune.checkpoints.locate import locate
from ditprune.cli import console
from ditprune.cli.evaluate import own_command
from ditprune.cli.globs import blocks_option, read_globs
from ditprune.cli.groups import GroupedCommand
from ditprune.cli.options import (
    PATH,
    condition_options,
    measuring_options,
    placement_options,
    read_labels,
    read_measures,
    read_pipeline_options,
    read_prompts,
)
from ditprune.denoiser.placement import Placement
from ditprune.errors import RecipeError
from ditprune.evaluation.protocol import Protocol
from ditprune.reproduce.rows import Options
from ditprune.reproduce.run import TABLE, reproduce_study


@click.command(cls=GroupedCommand)
@click.argument("study", metavar="STUDY")
@click.argument("model", default="bundled")
@click.option("-o", "--out", required=True, type=PATH, metavar="DIR")
@click.option("--num-images", type=int, help=f"[default: {Protocol.num_images}] of each model")
@click.option(
    "--num-held-out",
    type=int,
    help=f"[default: {Protocol.num_held_out}] denoiser calls for the relative error",
)
@click.option(
    "--batch-size", type=int, help=f"[default: {Protocol.batch_size}] images drawn together"
)
@click.option(
    "--num-samples", type=int, help=f"[default: {Sampling.num_samples}] of the calibration"
)
@click.option("--sparsities", metavar="S,…", help="[default: the study's] as in 0.4,0.5")
@click.option("--steps", metavar="N,…",
              help="[default: the study's; another model: its pipeline's] as in 50,25")  # fmt: skip
@click.option("--guidance-scales", metavar="G,…",
              help="[default: the study's; another model: its pipeline's] as in 1.5,3")  # fmt: skip
@click.option("--sizes", metavar="N,…", help="calibration-size: numbers of samples")
@click.option("--include", "layers", multiple=True, metavar="GLOB",
              help="importance: draw these layers; repeatable")  # fmt: skip
@blocks_option
@measuring_options
@condition_options
@placement_options
def reproduce(
    study: str, model: str, out: Path, metrics: str | None, feature_extractor: str,
    reference: Path | None, clip: str, labels: str | None, prompts: Path | None,
    pipeline_options: tuple[str, ...], device: str | None, dtype: str | None,
    max_memory: str | None, sparsities: str | None, steps: str | None,
    guidance_scales: str | None, sizes: str | None, layers: tuple[str, ...],
    blocks: tuple[str, ...], **plain: Any,
) -> None:  # fmt: skip
    """Repeat a STUDY of the paper with MODEL: the bundled one, or any pipeline.

    STUDY is main, ablation, nm, exponents, calibration-size, timesteps, guidance, statistics,
    importance, or all. Each writes results.json, table.md and figures to DIR/STUDY. A run that is
    stopped goes on when the same command is given again.
    """
    options = Options(
        sparsities=_numbers("--sparsities", sparsities, float),
        steps=_numbers("--steps", steps, int),
        guidance_scales=_numbers("--guidance-scales", guidance_scales, float),
        sizes=_numbers("--sizes", sizes, int), layers=layers or None,
        labels=read_labels(labels), prompts=read_prompts(prompts),
        pipeline_options=read_pipeline_options(pipeline_options),
        blocks=read_globs("blocks", blocks), **plain,
    )  # fmt: skip
    measures = read_measures(metrics, feature_extractor=feature_extractor, reference=reference,
                             clip=clip)  # fmt: skip
    where = Placement.of(device, dtype, max_memory)
    try:
        with console.progress() as progress:
            studies = reproduce_study(
                study, locate(model), out, options, measures, progress, where, own_command()
            )
    except KeyboardInterrupt:
        raise KeyboardInterrupt("run the same command again to go on") from None
    console.is_done(out)
    for name, results in studies.items():
        console.show(["", f"{name} · {results['title']}"])
        console.show([f"paper: {results['paper']['said']}"])
        for line in results["conclusions"]:
            console.show([f"here:  {line}"])
        console.show([f"table: {out / name / TABLE}"])


def _numbers(flag: str, text: str | None, kind: Callable[[str], float]) -> Any:
    """`"0.4,0.5"` → (0.4, 0.5). Raises RecipeError."""
    if text is None:
        return None
    try:
        values = tuple(kind(part) for part in text.split(","))
    except ValueError:
        raise RecipeError(f"{flag} '{text}': expected numbers with commas between") from None
    if len(set(values)) < len(values):
        raise RecipeError(f"{flag} '{text}': names a number twice; expected each once")
    return values
