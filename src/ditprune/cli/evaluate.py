"""ditprune evaluate: the dense model against pruned ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from rich.table import Table

from ditprune.calibration.placement import placement
from ditprune.calibration.workers import joined, own_device
from ditprune.checkpoints.locate import locate
from ditprune.cli import console
from ditprune.cli.options import (
    placement_options,
    read_labels,
    read_pipeline_options,
    read_prompts,
    sampling_options,
)
from ditprune.evaluation.evaluate import Protocol
from ditprune.evaluation.evaluate import evaluate as measure

_COLUMNS = (
    ("sparsity_asked", "asked", "{}"),
    ("sparsity", "got", "{:.4f}"),
    ("relative_error", "relative error", "{:.5f}"),
    ("ssim", "SSIM", "{:.4f}"),
    ("psnr", "PSNR dB", "{:.2f}"),
    ("fid", "FID*", "{:.3f}"),
    ("accuracy", "accuracy", "{:.3f}"),
)


@click.command()
@click.argument("dense")
@click.argument("pruned", nargs=-1, required=True)
@click.option("-o", "--out", required=True, type=click.Path(path_type=Path), metavar="DIR")
@click.option("--num-images", type=int, default=500, show_default=True)
@click.option("--num-held-out", type=int, default=128, show_default=True,
              help="denoiser calls for the relative error")  # fmt: skip
@click.option("--batch-size", type=int, default=50, show_default=True, help="images drawn together")
@sampling_options
@placement_options
def evaluate(
    dense: str, pruned: tuple[str, ...], out: Path, labels: str | None, prompts: Path | None,
    device: str | None, dtype: str | None, max_memory: str | None,
    pipeline_options: tuple[str, ...], **options: Any,
) -> None:  # fmt: skip
    """Draw the same seeds with DENSE and each PRUNED model, and measure the difference.

    Under `torchrun` or `accelerate launch` the processes share the images.
    """
    protocol = Protocol(
        labels=read_labels(labels), prompts=read_prompts(prompts),
        pipeline_options=read_pipeline_options(pipeline_options), **options,
    )  # fmt: skip
    models = [(Path(folder).name, locate(folder)) for folder in pruned]
    with joined() as worker:
        place = placement(own_device(device or "cpu"), dtype, max_memory)
        with console.progress() as report:
            results = measure(locate(dense), models, out, protocol, report, place, worker)
        if worker.is_first:
            show_results(results)
            console.out.print(
                f"numbers:  {out / 'results.json'}\npictures: {out / 'grid.png'}", markup=False
            )


def show_results(results: dict[str, Any]) -> None:
    """The table of results.json, and how it was made."""
    table = Table("model", *(title for _, title, _ in _COLUMNS), box=None, pad_edge=False)
    for column in table.columns[1:]:
        column.justify = "right"
    for row in results["models"]:
        cells = (
            "–" if row[key] is None else pattern.format(row[key]) for key, _, pattern in _COLUMNS
        )
        table.add_row(row["name"], *cells)
    console.out.print(table)
    protocol = results["protocol"]
    steps, guidance = (
        "the pipeline's default" if protocol[key] is None else protocol[key]
        for key in ("num_inference_steps", "guidance_scale")
    )
    console.out.print(
        f"{protocol['num_images']} images a model, seed {protocol['seed']}, "
        f"{protocol['scheduler']}, steps: {steps}, guidance: {guidance}; relative error of the "
        f"predicted noise over {protocol['num_held_out']} held-out calls; SSIM and PSNR to the "
        f"dense image of the same seed\n* FID and accuracy by {protocol['feature_extractor']}",
        markup=False,
    )
