"""How does a study run, from its name to results.json, a table and figures?"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from ditprune import bundled
from ditprune.checkpoints.locate import ModelFolder
from ditprune.checkpoints.skeleton import check_dense
from ditprune.denoiser.placement import Placement
from ditprune.errors import ModelError, OutputError, RecipeError
from ditprune.evaluation.drawing import check_draws_images
from ditprune.evaluation.protocol import Measures
from ditprune.progress import Progress, silent
from ditprune.reproduce.figures import draw_figures
from ditprune.reproduce.findings import (
    conclusions_of_findings,
    conclusions_of_importance,
    conclusions_of_statistics,
    findings_of,
)
from ditprune.reproduce.look import look_at_importance, look_at_statistics
from ditprune.reproduce.rows import ALL, Options, Row, rows_of, settings_of, studies_of
from ditprune.reproduce.studies import Study, paper_of
from ditprune.reproduce.tables import study_page
from ditprune.reproduce.workbench import (
    FOLDER,
    Run,
    make_row,
    open_work_folder,
    open_workbench,
    read_record,
    write_record,
)
from ditprune.writing.files import ensure_folder, results_folder, write_beside
from ditprune.writing.json_file import read_json

FORMAT = 1
RESULTS, TABLE = "results.json", "table.md"
# Parts of the protocol that stand beside each row.
_OF_A_ROW = ("num_inference_steps", "guidance_scale")


def reproduce_study(
    name: str,
    model: ModelFolder,
    out: Path,
    options: Options,
    measures: Measures | None = None,
    progress: Progress = silent,
    placement: Placement | None = None,
    command: str | None = None,
) -> dict[str, dict[str, Any]]:
    """Repeat one of the paper's studies, or all of them, with a model.

    Finished work is kept in `out/.work`, row by row: a study that was stopped goes on, and rows
    that two studies have in common are made once.

    Args:
        name: a key of `STUDIES`, or `all`.
        model: a pipeline folder with dense weights.
        out: each study writes results.json, table.md and its figures to `out/<study>`.
        measures: which metrics, and how.
        command: the command line that is running, for the record; None for a call from Python.

    Returns:
        The content of each results.json, by study.

    Raises:
        DitpruneError: before any work if it can be known by then.
    """
    placement, measures = placement or Placement(), measures or Measures()
    is_bundled = model.root.resolve() == bundled.PIPELINE.resolve()
    studies = _checked_studies(name, options, measures, is_bundled)
    if not model.is_pipeline:
        raise RecipeError(f"{model.name}: is a bare denoiser; expected a pipeline that draws")
    if any(rows for *_, rows in studies):
        check_draws_images(model)
    for folder in model.denoisers.values():
        check_dense(folder)
    work = out / FOLDER
    for study, *_ in studies:
        _check_place(out / study.name, work)
    with results_folder(out, lambda: work.is_dir() and any(p.is_file() for p in work.rglob("*"))):
        work_folder = open_work_folder(model, out, measures, placement, options.blocks)
        run = Run(model, work_folder, placement, command, progress, options.blocks)
        results = {}
        for study, study_options, rows in studies:
            if rows:
                content = _results_of_rows(study, rows, _records(run, study, rows))
            else:
                content = _look(run, study, study_options, is_bundled)
            results[study.name] = _write_study(run, study, content, out / study.name)
        return results


def _check_place(folder: Path, work: Path) -> None:
    """Refuse to replace results, tables or figures that no study wrote. Raises OutputError."""
    file = folder / RESULTS
    if file.exists():
        try:
            is_ours = "study" in read_json(file)
        except ModelError:
            is_ours = False
        others = [] if is_ours else [file]
    else:
        others = [] if work.is_dir() else [folder / TABLE, *folder.glob("*.svg")]
    for other in others:
        if other.exists():
            raise OutputError(
                f"{other}: was not written by ditprune reproduce; move it away, or choose another "
                "folder"
            )


def _checked_studies(
    name: str, options: Options, measures: Measures, is_bundled: bool
) -> list[tuple[Study, Options, list[Row]]]:
    """The studies of a name with their options and rows; every one is checked before the first."""
    studies = []
    for study in studies_of(name):
        study_options = options.for_study(study) if name == ALL else options
        study_options.check(study)
        if measures != Measures() and not study.methods and name != ALL:
            raise RecipeError(f"--metrics and its like: the study '{study.name}' draws no images")
        studies.append((study, study_options, rows_of(study, study_options, is_bundled)))
    return studies


def _records(run: Run, study: Study, rows: Sequence[Row]) -> list[dict[str, Any]]:
    """What is kept of every row; a row that is missing is made, and kept at once."""
    records: list[dict[str, Any]] = []
    for _, group in groupby(rows, key=lambda row: row.protocol):
        together = list(group)
        missing = [row for row in together if read_record(run.work.row_file(row)) is None]
        if missing:
            samplings = [row.sampling for row in missing if row.recipe is not None]
            bench = open_workbench(run, together[0], samplings)
        for row in together:
            file = run.work.row_file(row)
            record = read_record(file)
            if record is None:
                record = make_row(bench, row)
                write_record(file, record)
            records.append(record)
            run.progress(f"{study.name}: rows", len(records), len(rows))
        bench = None  # type: ignore[assignment]  # the model can leave before the next one comes
    return records


def _results_of_rows(
    study: Study, rows: Sequence[Row], records: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """The part of results.json that comes from rows."""
    shown = [_shown(row, record) for row, record in zip(rows, records, strict=True)]
    findings = findings_of(study, shown, [record["values"] for record in records])
    protocol = {k: v for k, v in records[0]["protocol"].items() if k not in _OF_A_ROW}
    return {
        "protocol": protocol,
        "metrics": records[0]["metrics"],
        "rows": shown,
        "findings": [vars(finding) for finding in findings],
        "conclusions": conclusions_of_findings(study, findings),
    }


def _shown(row: Row, record: Mapping[str, Any]) -> dict[str, Any]:
    """A row of results.json."""
    model = record["model"]
    words = ("recipe", "sparsity", "metrics", "warnings", "error_by_timestep", "accounting")
    groups = [target["granularity"] for target in model["targets"]]
    return {
        "name": row.method,
        "setting": row.setting() | {word: record["protocol"][word] for word in _OF_A_ROW},
        "granularity": {name: groups.count(name) for name in dict.fromkeys(groups)},
        **{word: model[word] for word in words},
        "num_spoiled": model.get("num_spoiled", 0),  # absent in rows kept before it was counted
    }


def _look(run: Run, study: Study, options: Options, is_bundled: bool) -> dict[str, Any]:
    """The part of results.json of a study that draws no images."""
    is_statistics = study.name == "statistics"
    sampling = options.sampling(*settings_of(study, options, is_bundled)[0])
    file = run.work.look_file([study.name, options.layers], sampling)
    content = read_record(file)
    if content is None:
        if is_statistics:
            content = look_at_statistics(run, sampling)
        else:
            content = look_at_importance(run, sampling, options.layers)
        write_record(file, content)
    conclude = conclusions_of_statistics if is_statistics else conclusions_of_importance
    return {**content, "conclusions": conclude(content)}


def _write_study(
    run: Run, study: Study, content: Mapping[str, Any], folder: Path
) -> dict[str, Any]:
    """Write results.json, the table and the figures of a study."""
    ensure_folder(folder)
    results = {
        "format": FORMAT, "study": study.name, "title": study.title, "command": run.command,
        "model": run.model.name, **content, "paper": paper_of(study.name),
    }  # fmt: skip
    results["figures"] = draw_figures(results, study.axis, folder)
    results.pop("maps", None)  # they are large, and in the figures
    texts = {
        TABLE: study_page(results),
        RESULTS: json.dumps(results, indent=1, allow_nan=False) + "\n",
    }
    for name, text in texts.items():
        with write_beside(folder / name) as part:
            part.write_text(text, encoding="utf-8")
    return results
