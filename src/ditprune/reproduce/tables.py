"""How does results.json of a study read as a Markdown page?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

from ditprune.evaluation.catalogue import CATALOGUE
from ditprune.reporting import numbers
from ditprune.reproduce.findings import sampler_words, setting_text

_SIZES = {
    "weight_mean": "mean \\|W\\|", "weight_max": "max \\|W\\|", "input_mean": "mean \\|X\\|",
    "input_max": "max \\|X\\|", "ratio": "\\|W\\|/\\|X\\|", "squared_ratio": "\\|W\\|²/\\|X\\|",
}  # fmt: skip


def study_page(results: Mapping[str, Any]) -> str:
    """The whole page."""
    lines = [f"# {results['title']}", "", f"`{results['command']}`", ""]
    lines += [f"The paper ({results['paper']['source']}): {results['paper']['said']}", ""]
    lines += ["## What we find", *(f"- {line}" for line in results["conclusions"]), ""]
    lines += list(_own_tables(results))
    lines += list(_papers_tables(results["paper"]))
    lines += [*(f"![{results['title']}]({name})" for name in results["figures"]), ""]
    lines += ["## Protocol", *_protocol(results), ""]
    return "\n".join(lines)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """A Markdown table; text on the left, numbers on the right."""
    yield "| " + " | ".join(header) + " |"
    yield "|" + "---|" + "---:|" * (len(header) - 1)
    yield from ("| " + " | ".join(row) + " |" for row in rows)


def _own_tables(results: Mapping[str, Any]) -> Iterator[str]:
    if results["study"] == "statistics":
        yield from _by_layer(results["rows"], _SIZES, "By kind of layer", None)
        yield from ("Ratios are of means; every layer at every depth is in results.json.", "")
    elif results["study"] == "importance":
        yield from _by_layer(
            results["rows"], {"g_out": "G_out"}, "G_out by kind of layer", "granularity"
        )
    else:
        yield from _measured(results)


def _by_layer(
    rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str], title: str, counted: str | None
) -> Iterator[str]:
    """A row for each kind of layer: its numbers over depths, and how often each word occurs."""
    yield from (f"## {title}: mean over depths, and from the smallest to the largest", "")
    lines = []
    for layer in dict.fromkeys(row["layer"] for row in rows):
        alike = [row for row in rows if row["layer"] == layer]
        line = [f"`{layer}`", alike[0]["role"], *(_span(alike, key) for key in columns)]
        if counted:
            words = [row[counted] for row in alike]
            line.append(", ".join(f"{words.count(word)} {word}" for word in dict.fromkeys(words)))
        lines.append(line)
    yield from table(["layer", "role", *columns.values(), *([counted] if counted else [])], lines)
    yield ""


def _span(rows: Sequence[Mapping[str, Any]], key: str) -> str:
    values = [row[key] for row in rows if row[key] is not None]
    if not values:
        return numbers.NONE
    return f"{sum(values) / len(values):.3g} ({min(values):.3g}–{max(values):.3g})"


def _measured(results: Mapping[str, Any]) -> Iterator[str]:
    """A table for each (steps, guidance), a row for each method and sparsity."""
    metrics = {key: m for key, m in results["metrics"].items() if m["unavailable"] is None}

    def title(row: Mapping[str, Any]) -> str:
        return ", ".join(sampler_words(row)) or "the pipeline's own steps and guidance"

    for text, group in groupby(results["rows"], title):
        yield from (f"## {text}", "")
        rows = []
        for row in group:
            removed = numbers.NONE if row["recipe"] is None else f"{100 * row['sparsity']:.1f} %"
            cells = (numbers.with_interval(row["metrics"][key], m) for key, m in metrics.items())
            rows.append([_method(row), removed, *cells])
        yield from table(["method", "removed", *map(_titled, metrics.values())], rows)
        yield ""
    yield from _warnings(results["rows"])
    for metric in results["metrics"].values():
        if metric["unavailable"] is not None:
            yield f"{metric['title']}: not available: {metric['unavailable']}  "
    yield ""


def _warnings(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Each warning once, with the rows that have it."""
    warned: dict[str, list[str]] = {}
    for row in rows:
        for said in row["warnings"]:
            warned.setdefault(said, []).append(f"{_method(row)} at {setting_text(row)}")
    if warned:
        yield from ("What these samples cannot tell:", "")
        for said, whose in warned.items():
            more = f" and {len(whose) - 1} more" if len(whose) > 1 else ""
            yield f"- {whose[0]}{more}: {said}"
        yield ""


def _method(row: Mapping[str, Any]) -> str:
    pattern = row["setting"]["pattern"]
    return f"{pattern} {row['name']}" if pattern else str(row["name"])


def _titled(metric: Mapping[str, Any]) -> str:
    arrow = {"lower": " ↓", "higher": " ↑"}.get(metric["better"], "")
    return f"{metric['title']} {metric['unit']}".rstrip() + arrow


def _papers_tables(paper: Mapping[str, Any]) -> Iterator[str]:
    yield from ("## The paper's figures, of other models", "")
    if paper["missing"]:
        yield from (f"{paper['source']}: {paper['missing']}.", "")
    for figures in paper["figures"]:
        lines = figures["lines"]
        keys = [key for key in CATALOGUE if any(key in line["metrics"] for line in lines)]
        rows = [
            [line["method"], _share(line["sparsity"])]
            + [numbers.brief(line["metrics"].get(key), 6) for key in keys]
            for line in lines
        ]
        yield from (f"{figures['model']}: {figures['setting']} ({paper['source']})", "")
        yield from table(["method", "removed", *(CATALOGUE[key].title for key in keys)], rows)
        yield ""


def _share(sparsity: float | str) -> str:
    if isinstance(sparsity, str):
        return sparsity
    return numbers.percent(sparsity) if sparsity else numbers.NONE


def _protocol(results: Mapping[str, Any]) -> Iterator[str]:
    """What a reader needs to repeat it, a line each."""
    for key, value in results["protocol"].items():
        if value is not None and value != {}:
            yield f"- {key}: {numbers.listed(value)}"
    metrics = results.get("metrics", {}).values()
    yield from sorted({f"- {m['title']}: {m['note']}" for m in metrics if m["note"]})
    if metrics:
        yield "- in brackets: 95 % bootstrap intervals"
