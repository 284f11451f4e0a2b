"""Compares pruned models with their dense one: same seeds, same held-out denoiser calls."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from ditprune.calibration.draw import conditions, in_turn, of_items
from ditprune.calibration.workers import Worker
from ditprune.denoiser.capture import denoisers_of
from ditprune.denoiser.pipeline import load_pipeline
from ditprune.denoiser.placement import Placement
from ditprune.errors import RecipeError
from ditprune.evaluation.accounting import Work, count_work, take_stock, work_of
from ditprune.evaluation.claims import Claims, claims_of, dense_claims
from ditprune.evaluation.drawing import (
    DRAWN,
    IMAGES_FOLDER,
    Images,
    draw_missing,
    drawn_by,
    images_key,
)
from ditprune.evaluation.held_out import HeldOut, exchange_denoisers, predictions, sample_held_out
from ditprune.evaluation.in_memory import (
    AnyModel,
    ModelInMemory,
    borrowed,
    check_against,
    copy_of,
)
from ditprune.evaluation.measure import Measured, measure_model
from ditprune.evaluation.metrics.error_rows import ErrorRow
from ditprune.evaluation.place import (
    check_models_unchanged,
    check_results_place,
    held_images,
    stamps_of,
)
from ditprune.evaluation.protocol import Measures, Protocol, resolved
from ditprune.evaluation.results import (
    MeasuredModel,
    protocol_json,
    results_of,
    write_results,
)
from ditprune.evaluation.tools import prepare_tools
from ditprune.evaluation.user_judge import UserJudge
from ditprune.progress import Progress, silent
from ditprune.writing.files import check_no_link, results_folder


@dataclass(frozen=True)
class _Run:
    """What all steps of one evaluation need."""

    dense: AnyModel
    pruned: Sequence[tuple[str, AnyModel]]
    out: Path
    protocol: Protocol
    measures: Measures
    command: str | None
    progress: Progress
    placement: Placement
    worker: Worker
    judge: UserJudge | None
    drawn: str

    def draw(
        self, pipeline: Any, name: str, model: AnyModel | None, drawn: Sequence[Any],
        asked: Sequence[Any],
    ) -> Images:  # fmt: skip
        """Draw the missing images of a pruned model, or of the dense one for None.

        Nothing is drawn where the pipeline draws neither images nor frames.
        """
        folder = self.measures.images or self.out / IMAGES_FOLDER
        key = images_key(self.dense, model, self.protocol, self.placement, drawn)
        num_images = self.protocol.num_images if self.drawn in DRAWN else 0
        images = Images(folder / key, num_images, self.protocol.batch_size)
        models = (self.dense, *(model for _, model in self.pruned))
        is_alone = not any(isinstance(each, ModelInMemory) for each in models)
        draw_missing(
            pipeline, asked, self.protocol, images, name, self.progress, self.worker, is_alone
        )
        return images


@dataclass(frozen=True)
class _Sampled:
    """What remains of a model when it has left memory."""

    name: str
    model: AnyModel
    claims: Claims
    images: Images
    rows: tuple[ErrorRow, ...]
    work: Work | None


def compare(
    dense: AnyModel,
    pruned: Sequence[tuple[str, AnyModel]],
    out: Path,
    protocol: Protocol,
    progress: Progress = silent,
    placement: Placement | None = None,
    worker: Worker | None = None,
    measures: Measures | None = None,
    command: str | None = None,
    judge: UserJudge | None = None,
) -> dict[str, Any]:
    """Measure pruned models against their dense one.

    Of folders, one model is in memory at a time. Images are kept in `out/.images` as they are
    drawn. So a stopped run goes on, and the images of the dense model serve the next evaluation
    with the same protocol.

    Args:
        dense: a pipeline.
        pruned: (name, model) pairs; pipelines or bare denoisers of the dense model's class.
        out: folder for `results.json` and `grid.png`; it is created if it does not exist.
        placement: where models of folders run; a dense pipeline in memory says it itself.
        worker: which share of images and calls is this process's; the first worker measures.
        measures: which metrics to compute, with which networks, against which images.
        command: the command line that is running, for the record; None for a call from Python.
        judge: whose numbers become metrics, too.

    Returns:
        The content of results.json, on every worker; `results.py` describes it.

    Raises:
        DitpruneError: before sampling if possible.
    """
    names = ["dense", *(name for name, _ in pruned)]
    if len(set(names)) < len(names):
        raise RecipeError(
            f"evaluate: two models would be called the same ({', '.join(names)}); rename a folder"
        )
    drawn = drawn_by(dense)
    if judge is not None and drawn not in DRAWN:
        raise RecipeError(f"evaluate: judge looks at images, and {dense.name} draws {drawn}")
    measures, placement = measures or Measures(), placement or Placement()
    if isinstance(dense, ModelInMemory):
        placement = replace(dense.placement, max_memory=placement.max_memory)
    for _, model in pruned:
        check_against(model, dense, placement)
    run = _Run(
        dense, pruned, out, protocol, measures, command, progress, placement, worker or Worker(),
        judge, drawn,
    )  # fmt: skip
    images = out / IMAGES_FOLDER
    check_no_link(images)
    check_results_place(out)
    here = [model for model in (dense, *(m for _, m in pruned)) if isinstance(model, ModelInMemory)]
    with (
        results_folder(
            out,
            lambda: images.is_dir() and any(images.rglob("*.safetensors")),
            holds=run.worker.is_first,
        ),
        held_images(measures.images, run.worker.is_first),
        borrowed(here),
    ):
        return _compare(run)


def _compare(run: _Run) -> dict[str, Any]:
    """Check the models, sample each of them in turn, and measure on the first worker."""
    if run.worker.is_first:
        check_results_place(run.out)  # again, now that nobody else writes there
    stamps = stamps_of({"dense": run.dense, **dict(run.pruned)})
    pipeline = _open(run.dense, run.placement)
    names = tuple(run.dense.denoisers)
    denoisers = denoisers_of(pipeline, names)
    claims = [claims_of(model, denoisers) for _, model in run.pruned]
    pool = conditions(pipeline, run.protocol.labels, run.protocol.prompts)
    drawn = in_turn(pool, run.protocol.num_images)
    asked = of_items(pool, run.protocol.num_images)
    held_out = sample_held_out(pipeline, run.protocol, run.progress, names, run.worker)
    structure = dense_claims(denoisers, claims)
    work = _work(run, denoisers, held_out, structure)
    noise = {name: predictions(denoiser, held_out.calls.get(name, []), run.placement)
             for name, denoiser in denoisers.items()}  # fmt: skip
    images = run.draw(pipeline, "dense", None, drawn, asked)
    if run.judge is not None and run.worker.is_first:
        first = images.ranges[0]  # so that an answer of the wrong kind is refused before the rest
        run.judge(images.read(first), [asked[i] for i in first])
    denoisers.clear()  # so that each denoiser can leave memory when the next one comes
    sampled = [_Sampled("dense", run.dense, structure, images, (), work)]
    for (name, model), claim in zip(run.pruned, claims, strict=True):
        worker_rows = exchange_denoisers(pipeline, model, held_out.calls, noise, run.placement)
        rows = tuple(itertools.chain(*run.worker.gather(worker_rows)))
        own_work = work
        if claim.is_shrunk:
            own_work = _work(run, denoisers_of(pipeline, names), held_out, claim)
        images = run.draw(pipeline, name, model, drawn, asked)
        sampled.append(_Sampled(name, model, claim, images, rows, own_work))
    results: dict[str, Any] = {}
    if run.worker.is_first:
        check_models_unchanged({"dense": run.dense, **dict(run.pruned)}, stamps)
        protocol = resolved(run.protocol, pipeline, drawn, held_out.num_steps)
        results = _measure(run, pipeline, sampled, asked, protocol)
    run.worker.wait()
    return run.worker.gather(results)[0]


def _open(dense: AnyModel, placement: Placement) -> Any:
    """The dense pipeline, to be changed freely."""
    if isinstance(dense, ModelInMemory):
        return copy_of(dense.pipeline)
    return load_pipeline(dense, placement)


def _work(
    run: _Run, denoisers: Mapping[str, nn.Module], held_out: HeldOut, structure: Claims
) -> Work | None:
    """The multiply-accumulates of an image, counted by the workers that have calls."""
    counted = count_work(denoisers, held_out.calls, structure.targets, run.placement)
    everyone = run.worker.gather((counted, held_out.rows_per_step, held_out.num_steps))
    by_worker, rows_per_step, num_steps = zip(*everyone, strict=True)
    return work_of(by_worker, max(rows_per_step), max(num_steps)) if max(num_steps) else None


def _measure(
    run: _Run, pipeline: Any, sampled: Sequence[_Sampled], asked: Sequence[Any],
    protocol: Protocol,
) -> dict[str, Any]:  # fmt: skip
    """Read the images of every model in turn, and write the results.

    Args:
        protocol: with the pipeline's defaults filled in.
    """
    first = sampled[0].images
    like = first.read_frames(first.ranges[0]) if first.ranges else None
    tools = prepare_tools(
        run.measures, None if like is None else like[:, 0], asked, run.placement, run.judge
    )
    models: list[MeasuredModel] = []
    dense: Measured | None = None
    for number, model in enumerate(sampled, start=1):
        measured = measure_model(model.images, dense, model.rows, asked, tools, run.protocol.seed)
        if run.judge is not None and dense is not None:
            run.judge.check_alike(model.name, measured.values, dense.values)
        dense = dense or measured
        stock = take_stock(model.model, model.claims.targets)
        models.append(
            MeasuredModel(model.name, model.claims, stock, measured, model.rows, model.work)
        )
        run.progress("measuring", number, len(sampled))
    title = _title(run.dense)
    content = protocol_json(protocol, pipeline, title, like, tools, run.placement)
    dense_path = "DENSE" if isinstance(run.dense, ModelInMemory) else run.dense.name
    results = results_of(models, tools, content, run.command, dense_path)
    write_results(results, models, asked, run.protocol, run.out)
    for model in sampled[1:]:
        model.images.remove()
    return results


def _title(dense: AnyModel) -> str:
    """The dense model in the protocol: its folder's name, or what is in memory."""
    if isinstance(dense, ModelInMemory):
        return f"{type(dense.pipeline).__name__} in memory"
    return dense.root.resolve().name
