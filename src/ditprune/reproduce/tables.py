"""How does results.json of a study read as a Markdown page? `study.md.j2` is its template."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ditprune.evaluation.catalogue import CATALOGUE
from ditprune.reporting.formats import fill
from ditprune.reproduce.findings import sampler_words, setting_text


def study_page(results: Mapping[str, Any]) -> str:
    """The whole page."""
    layers: dict[str | None, list[Any]] = {}
    settings: dict[str, list[Any]] = {}
    warned: dict[str, list[str]] = {}
    for row in results["rows"]:
        if "layer" in row:  # nothing was drawn
            layers.setdefault(row["layer"], []).append(row)
            continue
        settings.setdefault(", ".join(sampler_words(row)), []).append(row)
        for warning in row["warnings"]:
            warned.setdefault(warning, []).append(f"{_method(row)} at {setting_text(row)}")
    metrics = results.get("metrics", {})
    return fill(
        "study.md.j2",
        results={"metrics": {}, **results},
        paper=results["paper"],
        layers=layers,
        settings=settings,
        shown={key: metric for key, metric in metrics.items() if metric["unavailable"] is None},
        warned=warned,
        notes=sorted({f"{m['title']}: {m['note']}" for m in metrics.values() if m["note"]}),
        method=_method,
        catalogue=CATALOGUE,
    )


def _method(row: Mapping[str, Any]) -> str:
    return " ".join(filter(None, (row["setting"]["pattern"], row["name"])))
