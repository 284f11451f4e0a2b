"""One study, or all: rows, results.json, a Markdown table and figures, in a folder of its own."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ditprune import bundled
from ditprune.checkpoints.locate import ModelFolder
from ditprune.checkpoints.skeleton import check_dense
from ditprune.denoiser.placement import Placement
from ditprune.errors import RecipeError, did_you_mean
from ditprune.evaluation.drawing import check_draws_images
from ditprune.evaluation.protocol import Measures
from ditprune.progress import Progress, silent
from ditprune.reporting.commands import options_of
from ditprune.reproduce import figures
from ditprune.reproduce.kept import FOLDER, open_kept
from ditprune.reproduce.look import look_at_importance, look_at_statistics
from ditprune.reproduce.measured import measure_rows, results_of_rows
from ditprune.reproduce.paper import figures_of
from ditprune.reproduce.rows import Options, Row, rows_of, settings_of
from ditprune.reproduce.seen import conclusions_of_importance, conclusions_of_statistics
from ditprune.reproduce.studies import STUDIES, Study
from ditprune.reproduce.tables import markdown
from ditprune.reproduce.workbench import Run
from ditprune.writing.files import ensure_folder, results_folder, write_beside

FORMAT = 1
ALL = "all"
RESULTS, TABLE = "results.json", "table.md"


def reproduce(
    name: str,
    model: ModelFolder,
    out: Path,
    options: Options,
    measures: Measures | None = None,
    progress: Progress = silent,
    place: Placement | None = None,
    command: str | None = None,
) -> dict[str, dict[str, Any]]:
    """Remake one of the paper's studies, or all of them, on a model.

    What is done is kept in `out/.work`, row by row: a stopped study goes on, and rows that two
    studies have in common are made once.

    Args:
        name: a key of `STUDIES`, or `all`.
        model: a pipeline folder, its weights dense.
        out: each study writes results.json, table.md and its figures to `out/<study>`.
        measures: which metrics, by whose eyes.
        command: how to repeat it, for the record.

    Returns:
        What each results.json holds, by study.

    Raises:
        DitpruneError: before any work where it can be known.
    """
    place, measures = place or Placement(), measures or Measures()
    chosen = studies_of(name)
    own = {s.name: options.for_study(s) if name == ALL else options for s in chosen}
    is_bundled = model.root.resolve() == bundled.PIPELINE.resolve()
    rows: dict[str, list[Row]] = {}
    for study in chosen:  # refuses what can be refused, of all studies
        own[study.name].check(study)
        if measures != Measures() and not study.methods and name != ALL:
            raise RecipeError(f"--metrics and its like: the study '{study.name}' draws no images")
        rows[study.name] = rows_of(study, own[study.name], is_bundled) if study.methods else []
    if not model.is_pipeline:
        raise RecipeError(f"{model.name}: is a bare denoiser; expected a pipeline that draws")
    if any(rows.values()):
        check_draws_images(model)
    for folder in model.denoisers.values():
        check_dense(folder)
    work = out / FOLDER
    with results_folder(out, lambda: work.is_dir() and any(p.is_file() for p in work.rglob("*"))):
        command = command or _command(name, model, out, options, measures, place)
        run = Run(model, open_kept(model, out, measures, place), place, command, progress)
        return {
            study.name: _one(run, study, rows[study.name], own[study.name], is_bundled, out)
            for study in chosen
        }


def _command(
    name: str, model: ModelFolder, out: Path, options: Options, measures: Measures,
    place: Placement,
) -> str:  # fmt: skip
    """How to repeat what was not asked for by a command line, defaults left out."""
    words = ["ditprune", "reproduce", name, model.name, "-o", str(out)]
    for given, plain in ((options, Options()), (measures, Measures()), (place, Placement())):
        words += options_of(given, plain)
    return shlex.join(words)


def studies_of(name: str) -> list[Study]:
    """The studies that a word means. Raises RecipeError for an unknown one."""
    if name == ALL:
        return list(STUDIES.values())
    if name not in STUDIES:
        raise RecipeError(f"STUDY '{name}': {did_you_mean(name, [*STUDIES, ALL])}")
    return [STUDIES[name]]


def _one(
    run: Run, study: Study, rows: list[Row], options: Options, is_bundled: bool, out: Path
) -> dict[str, Any]:
    """Do what is missing of one study, and write its files."""
    if study.methods:
        found = results_of_rows(run, study, rows, measure_rows(run, study, rows))
    else:
        found = _look(run, study, options, is_bundled)
    folder = out / study.name
    ensure_folder(folder)
    results = {
        "format": FORMAT, "study": study.name, "title": study.title, "command": run.command,
        "model": run.model.name, **found, "paper": figures_of(study.name),
    }  # fmt: skip
    results["figures"] = figures.draw(results, study.axis, folder)
    results.pop("maps", None)  # they are in the figures, and large
    _write(folder / TABLE, markdown(results))
    _write(folder / RESULTS, json.dumps(results, indent=1, allow_nan=False) + "\n")
    return results


def _look(run: Run, study: Study, options: Options, is_bundled: bool) -> dict[str, Any]:
    """A study that draws nothing."""
    steps, guidance = settings_of(study, options, is_bundled)[0]
    sampling = options.sampling(steps, guidance)
    what = json.dumps([study.name, options.layers])
    found: Mapping[str, Any] | None = run.kept.read_look(what, sampling)
    if found is None:
        if study.name == "statistics":
            found = look_at_statistics(run, sampling)
        else:
            found = look_at_importance(run, sampling, options.layers)
        run.kept.write_look(what, sampling, found)
    conclude = (
        conclusions_of_statistics if study.name == "statistics" else conclusions_of_importance
    )
    return {**found, "conclusions": conclude(found)}


def _write(file: Path, text: str) -> None:
    with write_beside(file) as part:
        part.write_text(text, encoding="utf-8")
