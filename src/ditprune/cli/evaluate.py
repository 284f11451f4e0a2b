"""ditprune evaluate: measure pruned models against their dense one, and show the numbers."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource
from rich.table import Table
from rich.text import Text

from ditprune.calibration.workers import joined, own_device
from ditprune.checkpoints.locate import ModelFolder, locate
from ditprune.cli import console
from ditprune.cli.groups import GroupedCommand
from ditprune.cli.options import (
    PATH,
    measuring_options,
    placement_options,
    read_labels,
    read_measures,
    read_pipeline_options,
    read_prompts,
    sampling_options,
)
from ditprune.errors import DitpruneError
from ditprune.evaluation.evaluate import evaluate as evaluate_models
from ditprune.evaluation.evaluate import model_name
from ditprune.reporting import card, formats
from ditprune.reporting.notes import metric_notes, told_of, unavailable_notes, warnings_of


@click.command(cls=GroupedCommand)
@click.argument("dense")
@click.argument("pruned", nargs=-1, required=True)
@click.option("-o", "--out", required=True, type=PATH, metavar="DIR")
@click.option("--num-images", type=int, default=500, show_default=True)
@click.option("--num-held-out", type=int, default=128, show_default=True,
              help="denoiser calls for the relative error")  # fmt: skip
@click.option("--batch-size", type=int, default=50, show_default=True, help="images drawn together")
@measuring_options
@click.option("--images", type=PATH, metavar="DIR",
              help="[default: .images in the results] where drawn images are kept")  # fmt: skip
@sampling_options
@placement_options
def evaluate(
    dense: str, pruned: tuple[str, ...], out: Path, labels: str | None, prompts: Path | None,
    device: str | None, pipeline_options: tuple[str, ...], metrics: str | None, **words: Any,
) -> None:  # fmt: skip
    """Draw the same seeds with DENSE and each PRUNED model, and measure the difference.

    A run that is stopped goes on when the same command is given again. Under `torchrun` or
    `accelerate launch` the processes share the images.
    """
    words |= {
        "labels": read_labels(labels), "prompts": read_prompts(prompts),
        "pipeline_options": read_pipeline_options(pipeline_options),
        "metrics": read_measures(metrics).names,
    }  # fmt: skip
    with joined() as worker:
        words["device"] = own_device(device or "cpu")
        try:
            with console.progress() as progress:
                results = evaluate_models(dense, pruned, out, progress=progress, worker=worker,
                                          command=own_command(), **words)  # fmt: skip
        except KeyboardInterrupt:
            raise KeyboardInterrupt("run the same command again to go on") from None
        if worker.is_first:
            console.is_done(out)
            show_results(results)
            console.show([f"numbers:  {out / 'results.json'}", f"pictures: {out / 'grid.png'}"])
            write_cards([(model_name(folder), locate(folder)) for folder in pruned], results)


def write_cards(models: Sequence[tuple[str, ModelFolder]], results: dict[str, Any]) -> None:
    """Put the numbers into README.md of the folders that `prune` wrote; skip other folders.

    The results are on disk already, so a card that cannot be written is a warning.
    """
    for name, model in models:
        try:
            card.write(model.root, results, name)
        except (DitpruneError, OSError) as error:
            console.say(f"warning: the card of {name} stays as it was: {error}")


def own_command() -> str:
    """The command line that is running, without options that were not given."""
    context = click.get_current_context()
    words = ["ditprune", str(context.info_name)]
    for parameter in context.command.params:
        name = str(parameter.name)
        if context.get_parameter_source(name) is not ParameterSource.COMMANDLINE:
            continue
        given = context.params.get(name)
        for value in given if isinstance(given, tuple) else (given,):
            flag = [max(parameter.opts, key=len)] if isinstance(parameter, click.Option) else []
            words += [*flag, str(value)]
    return shlex.join(words)


def show_results(results: dict[str, Any]) -> None:
    """Print the table of numbers, which metrics are missing and why, warnings, costs, protocol."""
    metrics = results["metrics"]
    shown = {key: metric for key, metric in metrics.items() if metric["unavailable"] is None}
    for table in _tables(results["models"], shown):
        console.show_table(table)
    console.show(f"{titles}: not available: {why}" for titles, why in unavailable_notes(metrics))
    models = results["models"]
    for notes in (metric_notes(metrics, models), told_of(models), warnings_of(models)):
        console.show(f"{names}: {text}" for names, text in notes)
    _show_costs(results["models"])
    _show_protocol(results["protocol"])


def _tables(rows: Sequence[dict[str, Any]], metrics: dict[str, Any]) -> Iterator[Table]:
    """Tables no wider than the screen: each number, and below it the ends of its 95 % interval."""
    columns: list[tuple[str, list[str]]] = [
        ("asked", ["–" if r["sparsity_asked"] is None else f"{r['sparsity_asked']}" for r in rows]),
        ("got", [f"{row['sparsity']:.4f}" for row in rows]),
    ]
    for key, metric in metrics.items():
        title = f"{metric['title']} {metric['unit']}".strip()
        columns.append((title, [_cell(row["metrics"][key], metric["digits"]) for row in rows]))
    names = [row["name"] for row in rows]
    width = console.width() - max(map(len, [*names, "model"]))
    while columns:
        count = max(1, _num_fitting(columns, width))
        table = Table("model", box=None, pad_edge=False)
        for title, _ in columns[:count]:
            table.add_column(Text(title), justify="right", no_wrap=True)
        for number, name in enumerate(names):
            cells = (Text(cells[number]) for _, cells in columns[:count])  # of two lines
            table.add_row(name, *cells)
        yield table
        columns = columns[count:]


def _num_fitting(columns: Sequence[tuple[str, list[str]]], width: int) -> int:
    """How many columns fit side by side, with two blanks before each."""
    widths = (
        2 + max(len(line) for cell in (title, *cells) for line in cell.split("\n"))
        for title, cells in columns
    )
    return sum(total <= width for total in accumulate(widths))


def _cell(interval: dict[str, Any] | None, digits: int) -> str:
    if interval is None:
        return "–"
    value, *ends = (f"{number:.{digits}f}" for number in interval.values() if number is not None)
    return f"{value}\n{'–'.join(ends)}" if len(ends) == 2 else value


def _show_costs(rows: Sequence[dict[str, Any]]) -> None:
    for row in rows:
        costs = row["accounting"]
        texts = [
            f"{costs['num_nonzero']:,} of {costs['num_parameters']:,} parameters not zero",
            formats.size(costs["size_bytes"]),
        ]
        if costs["macs_per_step"]:
            texts.append(
                f"{formats.count(costs['macs_per_step_effective'])} of "
                f"{formats.count(costs['macs_per_step'])} MACs a step without zeros"
            )
        if costs["seconds_per_image"] is not None:
            texts.append(f"{formats.seconds(costs['seconds_per_image'])} an image, measured")
        if costs["peak_memory_bytes"] is not None:
            texts.append(f"{formats.size(costs['peak_memory_bytes'])} of memory at most")
        console.show([f"{row['name']}: {', '.join(texts)}"])


def _show_protocol(protocol: dict[str, Any]) -> None:
    guidance = "none" if protocol["guidance_scale"] is None else protocol["guidance_scale"]
    lines = [
        f"{protocol['num_images']} images a model in batches of {protocol['batch_size']}, seed "
        f"{protocol['seed']}, {protocol['scheduler']}, steps: {protocol['num_inference_steps']}, "
        f"guidance: {guidance}; "
        f"relative error of the predicted noise over {protocol['num_held_out']} held-out calls; "
        "SSIM, PSNR and LPIPS to the dense image of the same seed; below each number its 95 % "
        "bootstrap interval",
        f"features: {protocol['feature_extractor']}",
        f"reference: {protocol['reference'] or 'the dense model’s images'}",
    ]
    console.show(lines)
