"""Dense against pruned: the same seeds, the same held-out denoiser calls, one table of numbers."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from ditprune.calibration.draw import conditions, in_turn, of_items
from ditprune.calibration.workers import Worker
from ditprune.checkpoints.locate import ModelFolder
from ditprune.denoiser.capture import denoisers_of
from ditprune.denoiser.pipeline import load_pipeline
from ditprune.denoiser.placement import Placement
from ditprune.errors import RecipeError
from ditprune.evaluation.accounting import Work, count_work, take_stock, work_of
from ditprune.evaluation.claims import Claims, claims_of, structure_of
from ditprune.evaluation.commands import evaluate_command
from ditprune.evaluation.drawing import as_unit as as_unit
from ditprune.evaluation.drawing import check_draws_images, draw_missing
from ditprune.evaluation.drawing import draw_images as draw_images
from ditprune.evaluation.held_out import (
    HeldOut,
    exchange,
    predictions,
    sample_held_out,
    with_error,
)
from ditprune.evaluation.held_out import relative_error_between as relative_error_between
from ditprune.evaluation.measure import Measured, measure
from ditprune.evaluation.metrics.error_rows import Row
from ditprune.evaluation.protocol import Measures
from ditprune.evaluation.protocol import Protocol as Protocol
from ditprune.evaluation.resolved import resolved
from ditprune.evaluation.results import Model, describe, results_of, write_results
from ditprune.evaluation.store import FOLDER, Images, key_of
from ditprune.evaluation.tools import prepare
from ditprune.progress import Progress, silent
from ditprune.writing.files import check_no_link, results_folder


@dataclass(frozen=True)
class Run:
    """What all steps of one evaluation need."""

    dense: ModelFolder
    pruned: Sequence[tuple[str, ModelFolder]]
    out: Path
    protocol: Protocol
    measures: Measures
    command: str
    progress: Progress
    place: Placement
    worker: Worker

    def images_of(self, model: ModelFolder | None, drawn: Sequence[Any]) -> Images:
        """Where the images of a pruned model are kept; of the dense one for None."""
        folder = self.measures.images or self.out / FOLDER
        key = key_of(self.dense, model, self.protocol, self.place, drawn)
        return Images(folder / key, self.protocol.num_images, self.protocol.batch_size)


@dataclass(frozen=True)
class Sampled:
    """What is left of a model once it is out of memory."""

    name: str
    folder: ModelFolder
    claims: Claims
    images: Images
    rows: tuple[Row, ...]


def evaluate(
    dense: ModelFolder,
    pruned: Sequence[tuple[str, ModelFolder]],
    out: Path,
    protocol: Protocol,
    progress: Progress = silent,
    place: Placement | None = None,
    worker: Worker | None = None,
    measures: Measures | None = None,
    command: str | None = None,
) -> dict[str, Any]:
    """Measure pruned models against their dense one; one model in memory at a time.

    Images are kept in `out/.images` as they are drawn: a stopped run goes on, and those of the
    dense model serve the next evaluation with the same protocol.

    Args:
        dense: a pipeline folder.
        pruned: (name, folder) pairs; pipelines or bare denoisers of the dense model's class.
        out: folder for `results.json` and `grid.png`, made if need be.
        place: where the models run.
        worker: which share of images and calls is this process's; the first one measures.
        measures: which metrics, by whose eyes, against what.
        command: how to repeat it, for the record.

    Returns:
        What results.json holds, on every worker: format 2, as `results.py` builds it.

    Raises:
        DitpruneError: before sampling where it can be known.
    """
    _check_names(pruned)
    check_draws_images(dense)
    measures, place = measures or Measures(), place or Placement()
    command = command or evaluate_command(
        dense.name, [model.name for _, model in pruned], out, protocol, measures, place
    )
    run = Run(dense, pruned, out, protocol, measures, command, progress, place, worker or Worker())
    kept = out / FOLDER
    check_no_link(kept)
    with results_folder(out, lambda: kept.is_dir() and any(kept.rglob("*.safetensors"))):
        return _evaluate(run)


def _evaluate(run: Run) -> dict[str, Any]:
    pipeline = load_pipeline(run.dense, run.place)
    names = tuple(run.dense.denoisers)
    own = denoisers_of(pipeline, names)
    claims = [claims_of(model, own) for _, model in run.pruned]
    pool = conditions(pipeline, run.protocol.labels, run.protocol.prompts)
    drawn = in_turn(pool, run.protocol.num_images)
    asked = of_items(pool, run.protocol.num_images)
    held_out = sample_held_out(pipeline, run.protocol, run.progress, names, run.worker)
    structure = structure_of(own)
    work = _work(run, own, held_out, structure)
    noise = {name: predictions(one, held_out.calls.get(name, []), run.place)
             for name, one in own.items()}  # fmt: skip
    images = run.images_of(None, drawn)
    draw_missing(pipeline, asked, run.protocol, images, "dense", run.progress, run.worker)
    own.clear()  # so that each denoiser can leave when the next one comes
    sampled = [Sampled("dense", run.dense, structure, images, ())]
    for (name, model), claimed in zip(run.pruned, claims, strict=True):
        own_rows = exchange(pipeline, model, held_out.calls, noise, run.place)
        rows = tuple(itertools.chain(*run.worker.gather(own_rows)))
        images = run.images_of(model, drawn)
        draw_missing(pipeline, asked, run.protocol, images, name, run.progress, run.worker)
        sampled.append(Sampled(name, model, claimed, images, rows))
    results: dict[str, Any] = {}
    if run.worker.is_first:
        used = resolved(run.protocol, pipeline, drawn, held_out.num_steps)
        results = _measure(run, pipeline, sampled, asked, work, used)
    run.worker.wait()
    return run.worker.gather(results)[0]


def _work(
    run: Run, own: Mapping[str, nn.Module], held_out: HeldOut, structure: Claims
) -> Work | None:
    """The products of an image, counted by the workers that have calls."""
    counted = count_work(own, held_out.calls, structure.names(), run.place)
    everyone = run.worker.gather((counted, held_out.styles[:1], held_out.num_steps))
    styles = [style for _, found, _ in everyone for style in found]
    if not styles:
        return None
    rows_per_step = styles[0].rows_per_image * styles[0].calls_per_step
    return work_of([one for one, _, _ in everyone], rows_per_step, max(n for *_, n in everyone))


def _measure(
    run: Run, pipeline: Any, sampled: Sequence[Sampled], asked: Sequence[Any], work: Work | None,
    used: Protocol,
) -> dict[str, Any]:  # fmt: skip
    """Read the images of every model in turn, and write what they tell.

    Args:
        used: the protocol with what the pipeline's defaults came to.
    """
    like = sampled[0].images.read(sampled[0].images.ranges[0])
    tools = prepare(run.measures, like, asked, run.place)
    models: list[Model] = []
    first: Measured | None = None
    for number, one in enumerate(sampled, start=1):
        compared = sampled[0].images if first else None
        found = measure(
            one.images, compared, first.seen if first else None, asked, tools, run.protocol.seed
        )
        first = first or found
        found = with_error(found, one.rows, tools, run.protocol.seed)
        models.append(
            Model(
                one.name, one.claims, take_stock(one.folder, one.claims.names()), one.images,
                found.estimates, found.values, found.ssim, one.rows,
            )
        )  # fmt: skip
        run.progress("measuring", number, len(sampled))
    assert first is not None
    results = results_of(
        models, tools, work, describe(used, pipeline, run.dense.root, like, tools, run.place),
        run.command, run.dense.name, first.seen.widths,
    )  # fmt: skip
    write_results(results, models, asked, run.protocol, run.out)
    for one in sampled[1:]:
        one.images.remove()
    return results


def _check_names(pruned: Sequence[tuple[str, ModelFolder]]) -> None:
    names = ["dense", *(name for name, _ in pruned)]
    if len(set(names)) < len(names):
        raise RecipeError(
            f"evaluate: two models would be called the same ({', '.join(names)}); rename a folder"
        )
