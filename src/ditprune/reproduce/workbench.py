"""A pipeline under one protocol: what its rows share, and how one of them is made."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from ditprune.calibration.calibrate import observe_calls
from ditprune.calibration.draw import conditions, in_turn, of_items
from ditprune.calibration.sample import Sampling, sample_calls
from ditprune.checkpoints import fingerprint, statistics_file
from ditprune.checkpoints.locate import ModelFolder, locate
from ditprune.denoiser.capture import denoisers_of
from ditprune.denoiser.pipeline import load_pipeline
from ditprune.denoiser.placement import Placement
from ditprune.denoiser.rows import to_placement
from ditprune.evaluation.accounting import take_stock
from ditprune.evaluation.claims import claims_of, dense_claims
from ditprune.evaluation.drawing import Images, draw_missing
from ditprune.evaluation.held_out import exchange_denoisers, predictions, sample_held_out
from ditprune.evaluation.measure import measure_model
from ditprune.evaluation.metrics.error_rows import ErrorRow
from ditprune.evaluation.protocol import Protocol, resolved
from ditprune.evaluation.results import MeasuredModel, protocol_json, results_of
from ditprune.evaluation.tools import Tools, prepare_tools
from ditprune.progress import Progress, silent
from ditprune.pruning.loop import prune_checkpoint
from ditprune.reproduce.kept import Kept
from ditprune.reproduce.rows import Row
from ditprune.writing.output import ensure_folder


@dataclass(frozen=True)
class Run:
    """What all rows of all studies need."""

    model: ModelFolder
    kept: Kept
    place: Placement
    command: str
    progress: Progress = silent


@dataclass(frozen=True)
class Workbench:
    """What the rows under one protocol share.

    Args:
        used: the protocol with what the pipeline's defaults came to.
        pipeline: whose denoisers are exchanged.
        asked: the condition of each image.
        calls, noise: held-out calls and what the dense denoisers predict, by denoiser.
        dense: the dense model and its numbers.
    """

    run: Run
    protocol: Protocol
    used: Protocol
    pipeline: Any
    asked: Sequence[Any]
    calls: Mapping[str, Sequence[Any]]
    noise: Mapping[str, Sequence[Tensor]]
    tools: Tools
    dense: MeasuredModel


def open_workbench(run: Run, dense: Row, samplings: Iterable[Sampling]) -> Workbench:
    """Load the model, calibrate it in these ways, and draw the dense images if need be."""
    protocol, names = dense.protocol, tuple(run.model.denoisers)
    pipeline = load_pipeline(run.model, run.place)
    own = denoisers_of(pipeline, names)
    structure = dense_claims(own)
    pool = conditions(pipeline, protocol.labels, protocol.prompts)
    asked = of_items(pool, protocol.num_images)
    for sampling in samplings:
        calibrate(run, pipeline, own, sampling)
    held_out = sample_held_out(pipeline, protocol, run.progress, names)
    calls = held_out.calls
    used = resolved(protocol, pipeline, in_turn(pool, protocol.num_images), held_out.num_steps)
    noise = {n: predictions(one, calls.get(n, []), run.place) for n, one in own.items()}
    images = run.kept.images(dense)
    draw_missing(pipeline, asked, protocol, images, "dense", _one_bar(run.progress))
    tools = prepare_tools(run.kept.measures, images.read(images.ranges[0]), asked, run.place)
    measured = measure_model(images, None, (), asked, tools, protocol.seed)
    stock = take_stock(run.model, structure.targets)
    model = MeasuredModel("dense", structure, stock, measured, ())
    return Workbench(run, protocol, used, pipeline, asked, calls, noise, tools, model)


def calibrate(run: Run, pipeline: Any, own: Mapping[str, nn.Module], sampling: Sampling) -> None:
    """Write the statistics of one way to calibrate, if they are not there yet."""
    file = run.kept.statistics_file(sampling)
    if file.is_file():
        return
    run.progress("calibrating", 0, 1)
    calls = sample_calls(pipeline, sampling, tuple(own))
    moved = [to_placement(call, run.place.device, run.place.dtype) for call in calls]
    found = {
        name: replace(
            observe_calls(
                one, [call for call in moved if call.denoiser == name],
                fingerprint.of_folder(run.model.denoisers[name]), sampling.num_bins,
            ),
            protocol=sampling.protocol(type(pipeline).__name__, type(pipeline.scheduler).__name__),
        )
        for name, one in own.items()
    }  # fmt: skip
    ensure_folder(file.parent)
    statistics_file.save(found, file)
    run.progress("calibrating", 1, 1)


def make_row(bench: Workbench, row: Row) -> dict[str, Any]:
    """Prune, draw and measure one row; what is kept of it.

    Returns:
        `metrics`, `protocol` and `model` as in results.json of `evaluate`, and `values`: of
        metrics that are means over items, the number of each item; None where it is not finite.
    """
    if row.recipe is None:
        return _record(bench, [bench.dense])
    run, folder = bench.run, bench.run.kept.pruned_folder(row)
    stats = statistics_file.load(run.kept.statistics_file(row.sampling))
    ensure_folder(folder.parent)
    prune_checkpoint(run.model, folder, stats, row.recipe, overwrite=True)
    pruned = locate(str(folder))
    rows = exchange_denoisers(bench.pipeline, pruned, bench.calls, bench.noise, run.place)
    images = run.kept.images(row)
    draw_missing(
        bench.pipeline, bench.asked, row.protocol, images, row.method, _one_bar(run.progress)
    )
    model = _measured(bench, row, pruned, images, rows)
    record = _record(bench, [bench.dense, model])
    images.remove()
    shutil.rmtree(folder, ignore_errors=True)
    return record


def _measured(
    bench: Workbench, row: Row, pruned: ModelFolder, images: Images, rows: tuple[ErrorRow, ...]
) -> MeasuredModel:
    """The numbers of a pruned model, from its images and its predictions."""
    dense, seed = bench.dense.measured, bench.protocol.seed
    measured = measure_model(images, dense, rows, bench.asked, bench.tools, seed)
    claims = claims_of(pruned, denoisers_of(bench.pipeline, tuple(pruned.denoisers)))
    stock = take_stock(pruned, claims.targets)
    return MeasuredModel(row.method, claims, stock, measured, rows)


def _record(bench: Workbench, models: Sequence[MeasuredModel]) -> dict[str, Any]:
    run, images = bench.run, bench.dense.measured.images
    protocol = protocol_json(
        bench.used, bench.pipeline, run.model.root, images.read(images.ranges[0]), bench.tools,
        run.place,
    )  # fmt: skip
    results = results_of(models, bench.tools, None, protocol, run.command, run.model.name)
    return {
        "metrics": results["metrics"],
        "protocol": results["protocol"],
        "model": results["models"][-1],
        "values": {
            name: [value if math.isfinite(value) else None for value in own]
            for name, own in models[-1].measured.values.items()
        },
    }


def _one_bar(progress: Progress) -> Progress:
    """One bar for what is drawn, whichever row it is of."""
    return lambda _what, done, total: progress("images of this row", done, total)
