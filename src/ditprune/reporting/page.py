"""How does one HTML file show results.json, without network, models or a certain browser?"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from ditprune.errors import ResultsError
from ditprune.reporting import formats, plots
from ditprune.reporting.costs import cost_text
from ditprune.reporting.formats import TEMPLATES, fill
from ditprune.reporting.load import load
from ditprune.reporting.notes import metric_notes, told_of, unavailable_notes, warnings_of
from ditprune.reporting.sections import (
    Sample,
    heterogeneity_tables,
    samples_of,
    sparsity_tables,
)
from ditprune.reporting.verdict import headline, images_text, num_images_of, verdicts_of
from ditprune.writing.files import check_file, write_beside

MOST_BYTES = 5_000_000
# What the file begins with, so that a later report knows that it may replace it.
MARK = "<!doctype html>\n<!-- made by ditprune report -->\n"
# Images this small are drawn with their pixels.
_SMALL_PX = 64


def write_report(folder: Path, out: Path | None = None) -> Path:
    """Write the page of the results in a folder; a page that is there is replaced.

    Returns where it is. Raises ResultsError, OutputError.
    """
    results = load(folder)
    file = out or (folder if folder.is_dir() else folder.parent) / "report.html"
    check_file(file, overwrite=_is_page(file))
    page = render(results)
    with write_beside(file) as part:
        part.write_text(page, encoding="utf-8")
    return file


def _is_page(file: Path) -> bool:
    """Whether a report is there, which a new one may replace."""
    if not file.is_file():
        return False
    with file.open("rb") as stream:
        return stream.read(len(MARK)) == MARK.encode()


def render(results: Mapping[str, Any]) -> str:
    """The page of checked results, at most `MOST_BYTES` long.

    If the gallery would make it longer, its least bad samples are left out and the page says so.
    Raises ResultsError if the page is too long without any sample.
    """
    context = _context(results)
    bare = len(_filled(context, []).encode())
    names = [model["name"] for model in results["models"][1:]]
    # What stands around the images of a sample is far below a kilobyte for each model.
    around = 1_000 * len(results["gallery"]) * (len(names) + 1)
    samples = samples_of(results["gallery"], names, MOST_BYTES - bare - around)
    page = _filled(context, samples)
    if len(page.encode()) > MOST_BYTES:
        raise ResultsError(
            f"the page would take {formats.size(len(page.encode()))}, expected at most "
            f"{formats.size(MOST_BYTES)}; evaluate fewer models at once"
        )
    return page


def _filled(context: Mapping[str, Any], samples: Sequence[Sample]) -> str:
    script = (TEMPLATES / "script.js").read_text(encoding="utf-8")
    return MARK + fill(
        "page.html.j2",
        is_html=True,
        **context,
        samples=samples,
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        palette=plots,
        NUM_COLOURS=plots.NUM_COLOURS,
    )


def _context(results: Mapping[str, Any]) -> dict[str, Any]:
    """Everything the template shows but the gallery."""
    models, metrics = results["models"], results["metrics"]
    dense, pruned = models[0], models[1:]
    verdicts, bench = verdicts_of(results), results.get("bench")
    shown = {key: metric for key, metric in metrics.items() if not metric["unavailable"]}
    return {
        "results": results,
        "models": models,
        "metrics": shown,
        "unavailable": unavailable_notes(metrics),
        "notes": metric_notes(metrics, models),
        "titles": {key: metric["title"] for key, metric in metrics.items()},
        "verdicts": verdicts,
        "headline": headline(verdicts),
        "costs": {model["name"]: cost_text(model, dense, bench) for model in pruned},
        "images": images_text(num_images_of(results["protocol"])),
        "warnings": warnings_of(models),
        "told": told_of(pruned),
        "plots": {
            key: plots.quality(key, metric, models)
            for key, metric in shown.items()
            if any(model["metrics"].get(key) for model in pruned)
        },
        "timesteps_plot": plots.timesteps(models),
        "has_timesteps": any(model["error_by_timestep"] for model in pruned),
        "layers": [
            (
                model["name"],
                sparsity_tables(model["targets"]),
                heterogeneity_tables(model["targets"]),
            )
            for model in pruned
            if model["targets"]
        ],
        "protocol": [
            (key.replace("_", " "), formats.listed(value))
            for key, value in results["protocol"].items()
            if value not in (None, {}, [])
        ],
        "is_small": _is_small(results["protocol"]),
        "version": metadata.version("ditprune"),
        "bench": bench,
        "as_json": lambda value: json.dumps(value, indent=1, ensure_ascii=False),
    }


def _is_small(protocol: Mapping[str, Any]) -> bool:
    resolution = protocol.get("resolution")
    return isinstance(resolution, list) and all(
        isinstance(side, (int, float)) and side <= _SMALL_PX for side in resolution
    )
