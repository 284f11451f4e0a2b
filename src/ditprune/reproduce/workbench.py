"""How is one row of a study made, and where is finished work kept?

The rows under one protocol share a `Workbench`: the pipeline, the held-out calls and the dense
model's images. A finished row is kept under a hash of everything that it depends on. It serves
every study that has it; with another model, option or version it is made again.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ditprune.calibration.collect import calibrate_folder
from ditprune.calibration.draw import conditions, in_turn, of_items
from ditprune.calibration.sample import Sampling, calibration_identity
from ditprune.calls import Call
from ditprune.checkpoints.locate import ModelFolder, locate
from ditprune.checkpoints.statistics_file import Statistics, read_statistics_file
from ditprune.denoiser.capture import denoisers_of
from ditprune.denoiser.pipeline import load_pipeline
from ditprune.denoiser.placement import Placement
from ditprune.errors import ModelError, OutputError
from ditprune.evaluation.accounting import take_stock
from ditprune.evaluation.claims import claims_of, dense_claims
from ditprune.evaluation.drawing import Images, draw_missing
from ditprune.evaluation.held_out import exchange_denoisers, predictions, sample_held_out
from ditprune.evaluation.measure import measure_model
from ditprune.evaluation.protocol import Measures, resolved
from ditprune.evaluation.results import MeasuredModel, protocol_json, results_of
from ditprune.evaluation.tools import Tools, prepare_tools, tools_stamp
from ditprune.progress import Progress, silent
from ditprune.pruning.loop import prune_checkpoint
from ditprune.reproduce.rows import Row
from ditprune.targets.blocks import Globs
from ditprune.writing.files import check_no_link, ensure_folder, write_beside
from ditprune.writing.json_file import read_json

FOLDER = ".work"
_DIGITS = 24


@dataclass(frozen=True)
class WorkFolder:
    """Where the finished work of all studies is, beside their results.

    Args:
        identity: the model, its placement and the versions.
        measures: the metrics of the rows.
        made_with: the libraries and files that these metrics depend on.
    """

    folder: Path
    identity: Mapping[str, Any]
    measures: Measures
    made_with: Mapping[str, Any]

    def row_file(self, row: Row) -> Path:
        """The record of a finished row."""
        measured = {"measures": asdict(self.measures), "made_with": self.made_with}
        return self.folder / "rows" / f"{self._key(_model_of(row) | measured)}.json"

    def look_file(self, what: Sequence[Any], sampling: Sampling) -> Path:
        """What a study that draws no images has found."""
        words = {"what": json.dumps(what), "sampling": asdict(sampling)}
        return self.folder / "looks" / f"{self._key(words)}.json"

    def statistics_file(self, sampling: Sampling) -> Path:
        """The statistics of one calibration."""
        key = self._key({"sampling": asdict(sampling)})
        return self.folder / "statistics" / f"{key}.safetensors"

    def images(self, row: Row) -> Images:
        """The images of a row until it is finished; those of the dense model stay."""
        folder = self.folder / "images" / self._key(_model_of(row))
        return Images(folder, row.protocol.num_images, row.protocol.batch_size)

    def pruned_folder(self, row: Row) -> Path:
        """The pruned model of a row until it is finished."""
        return self.folder / "pruned" / self._key(_model_of(row))

    def _key(self, words: Mapping[str, Any]) -> str:
        text = json.dumps({**self.identity, **words}, sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:_DIGITS]


def open_work_folder(
    model: ModelFolder, out: Path, measures: Measures, placement: Placement, blocks: Globs = ()
) -> WorkFolder:
    """The work folder inside a folder of results. Raises OutputError, ModelError."""
    folder = out / FOLDER
    check_no_link(folder)
    identity = calibration_identity(model, Sampling(), placement, blocks)
    identity = {key: value for key, value in identity.items() if key != "sampling"}
    return WorkFolder(folder, identity, measures, tools_stamp(measures))


def read_record(file: Path) -> dict[str, Any] | None:
    """What was kept in a file; None if there is none. Raises OutputError if it is damaged."""
    if not file.is_file():
        return None
    try:
        return read_json(file)
    except ModelError as error:
        raise OutputError(f"{error}; or remove it") from None


def write_record(file: Path, record: Mapping[str, Any]) -> None:
    """Keep finished work. Raises OutputError."""
    ensure_folder(file.parent)
    with write_beside(file) as part:
        part.write_text(json.dumps(record, allow_nan=False), encoding="utf-8")


def _model_of(row: Row) -> dict[str, Any]:
    """What the images of a row depend on."""
    words: dict[str, Any] = {"protocol": asdict(row.protocol)}
    if row.recipe is not None:
        words |= {"recipe": row.recipe.to_json(), "sampling": asdict(row.sampling)}
    return words


@dataclass(frozen=True)
class Run:
    """What all rows of all studies need."""

    model: ModelFolder
    work: WorkFolder
    placement: Placement
    command: str | None
    progress: Progress = silent
    blocks: Globs = ()

    def images_progress(self, _what: str, done: int, total: int) -> None:
        """Report drawn images on one bar, whichever row they belong to."""
        self.progress("images of this row", done, total)

    def statistics(self, sampling: Sampling) -> dict[str, Statistics]:
        """The statistics of every denoiser over one calibration, which runs if it has not yet."""
        file = self.work.statistics_file(sampling)
        if not file.is_file():
            ensure_folder(file.parent)
            calibrate_folder(
                self.model, file, sampling, self.placement, progress=self.progress,
                blocks=self.blocks,
            )  # fmt: skip
        return read_statistics_file(file)


@dataclass(frozen=True)
class Workbench:
    """What the rows under one protocol share.

    Args:
        pipeline: its denoisers are exchanged from row to row.
        asked: the condition of each image.
        calls, noise: held-out calls and what the dense denoisers predict, by denoiser.
        protocol: the `protocol` of results.json.
        dense: the dense model and its numbers.
    """

    run: Run
    pipeline: Any
    asked: Sequence[Any]
    calls: Mapping[str, Sequence[Call]]
    noise: Mapping[str, Sequence[Tensor]]
    tools: Tools
    protocol: Mapping[str, Any]
    dense: MeasuredModel


def open_workbench(run: Run, dense: Row, samplings: Iterable[Sampling]) -> Workbench:
    """Calibrate the model in these ways, load it, and draw the dense images that are missing."""
    protocol, names = dense.protocol, tuple(run.model.denoisers)
    for sampling in samplings:
        run.statistics(sampling)
    pipeline = load_pipeline(run.model, run.placement)
    denoisers = denoisers_of(pipeline, names)
    structure = dense_claims(denoisers)
    pool = conditions(pipeline, protocol.labels, protocol.prompts)
    asked = of_items(pool, protocol.num_images)
    held_out = sample_held_out(pipeline, protocol, run.progress, names)
    noise = {
        name: predictions(denoiser, held_out.calls.get(name, []), run.placement)
        for name, denoiser in denoisers.items()
    }
    images = run.work.images(dense)
    draw_missing(pipeline, asked, protocol, images, "dense", run.images_progress)
    like = images.read(images.ranges[0])
    tools = prepare_tools(run.work.measures, like, asked, run.placement)
    measured = measure_model(images, None, (), asked, tools, protocol.seed)
    stock = take_stock(run.model, structure.targets)
    model = MeasuredModel("dense", structure, stock, measured, ())
    used = resolved(protocol, pipeline, in_turn(pool, protocol.num_images), held_out.num_steps)
    name = run.model.root.resolve().name
    described = protocol_json(used, pipeline, name, like, tools, run.placement)
    return Workbench(run, pipeline, asked, held_out.calls, noise, tools, described, model)


def make_row(bench: Workbench, row: Row) -> dict[str, Any]:
    """Prune, draw and measure one row.

    Returns:
        What is kept of it: `metrics`, `protocol` and `model` as in results.json of `evaluate`, and
        `values`: the number of each item, of metrics that are means over items; None if it is not
        finite.
    """
    if row.recipe is None:
        return _record(bench, [bench.dense])
    run = bench.run
    folder, images = run.work.pruned_folder(row), run.work.images(row)
    stats = run.statistics(row.sampling)
    ensure_folder(folder.parent)
    prune_checkpoint(run.model, folder, stats, row.recipe, overwrite=True)
    pruned = locate(str(folder))
    errors = exchange_denoisers(bench.pipeline, pruned, bench.calls, bench.noise, run.placement)
    draw_missing(bench.pipeline, bench.asked, row.protocol, images, row.method, run.images_progress)
    dense, seed = bench.dense.measured, row.protocol.seed
    measured = measure_model(images, dense, errors, bench.asked, bench.tools, seed)
    claims = claims_of(pruned, denoisers_of(bench.pipeline, tuple(pruned.denoisers)))
    stock = take_stock(pruned, claims.targets)
    model = MeasuredModel(row.method, claims, stock, measured, errors)
    record = _record(bench, [bench.dense, model])
    images.remove()
    shutil.rmtree(folder, ignore_errors=True)
    return record


def _record(bench: Workbench, models: Sequence[MeasuredModel]) -> dict[str, Any]:
    run = bench.run
    results = results_of(models, bench.tools, bench.protocol, run.command, run.model.name)
    return {
        "metrics": results["metrics"],
        "protocol": results["protocol"],
        "model": results["models"][-1],
        "values": {
            name: [value if math.isfinite(value) else None for value in values]
            for name, values in models[-1].measured.values.items()
        },
    }
