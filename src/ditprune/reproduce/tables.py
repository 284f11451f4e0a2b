"""results.json of a study as Markdown: our numbers, the paper's, and what they come to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

from ditprune.evaluation.catalogue import CATALOGUE
from ditprune.reproduce.findings import setting_text

_SETTINGS = {
    "num_inference_steps": "{} steps", "guidance_scale": "guidance {:g}",
}  # fmt: skip
_SIZES = {
    "weight_mean": "mean \\|W\\|", "weight_max": "max \\|W\\|", "input_mean": "mean \\|X\\|",
    "input_max": "max \\|X\\|", "ratio": "\\|W\\|/\\|X\\|", "squared_ratio": "\\|W\\|²/\\|X\\|",
}  # fmt: skip


def markdown(results: Mapping[str, Any]) -> str:
    """The whole page."""
    lines = [f"# {results['title']}", "", f"`{results['command']}`", ""]
    lines += [f"The paper ({results['paper']['source']}): {results['paper']['said']}", ""]
    lines += ["## What we find", *(f"- {one}" for one in results["conclusions"]), ""]
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
        yield from _statistics(results["rows"])
    elif results["study"] == "importance":
        yield from _importance(results["rows"])
    else:
        yield from _measured(results)


def _measured(results: Mapping[str, Any]) -> Iterator[str]:
    """A table for each (steps, guidance), a row for each method and sparsity."""
    metrics = {key: one for key, one in results["metrics"].items() if one["unavailable"] is None}

    def setting(row: Mapping[str, Any]) -> str:
        own = row["setting"]
        words = [text.format(own[k]) for k, text in _SETTINGS.items() if own[k] is not None]
        return ", ".join(words) or "the pipeline's own steps and guidance"

    for text, group in groupby(results["rows"], setting):
        yield from (f"## {text}", "")
        header = ["method", "removed", *(_titled(one) for one in metrics.values())]
        rows = [
            [
                _method(row), "–" if row["recipe"] is None else f"{100 * row['sparsity']:.1f} %",
                *(_cell(row["metrics"][key], one["digits"]) for key, one in metrics.items()),
            ]
            for row in group
        ]  # fmt: skip
        yield from table(header, rows)
        yield ""
    yield from _warnings(results["rows"])
    for one in results["metrics"].values():
        if one["unavailable"] is not None:
            yield f"{one['title']}: not available: {one['unavailable']}  "
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


def _titled(one: Mapping[str, Any]) -> str:
    arrow = {"lower": " ↓", "higher": " ↑"}.get(one["better"], "")
    return f"{one['title']}{' ' + one['unit'] if one['unit'] else ''}{arrow}"


def _cell(one: Mapping[str, Any] | None, digits: int) -> str:
    if one is None:
        return "–"
    value = f"{one['value']:.{digits}f}"
    if one["low"] is None or one["high"] is None:
        return value
    return f"{value} [{one['low']:.{digits}f}, {one['high']:.{digits}f}]"


def _statistics(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """A row for each kind of layer: the mean over depths, and the ends."""
    yield from ("## By kind of layer: mean over depths, and from the smallest to the largest", "")
    lines = []
    for layer, own in _by_layer(rows):
        lines.append([f"`{layer}`", own[0]["role"], *(_span(own, key) for key in _SIZES)])
    yield from table(["layer", "role", *_SIZES.values()], lines)
    yield from ("", "Ratios are of means; every layer at every depth is in results.json.", "")


def _by_layer(rows: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, list[Mapping[str, Any]]]]:
    for layer in dict.fromkeys(row["layer"] for row in rows):
        yield layer, [row for row in rows if row["layer"] == layer]


def _span(rows: Sequence[Mapping[str, Any]], key: str) -> str:
    values = [row[key] for row in rows if row[key] is not None]
    if not values:
        return "–"
    return f"{sum(values) / len(values):.3g} ({min(values):.3g}–{max(values):.3g})"


def _importance(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """A row for each kind of layer: G_out over depths, and the granularity that CAG takes."""
    yield from ("## G_out by kind of layer: mean over depths, and from smallest to largest", "")
    lines = []
    for layer, own in _by_layer(rows):
        chosen = [row["granularity"] for row in own]
        counts = ", ".join(f"{chosen.count(name)} {name}" for name in dict.fromkeys(chosen))
        lines.append([f"`{layer}`", own[0]["role"], _span(own, "g_out"), counts])
    yield from table(["layer", "role", "G_out", "granularity"], lines)
    yield ""


def _papers_tables(paper: Mapping[str, Any]) -> Iterator[str]:
    yield from ("## The paper's figures, of other models", "")
    if paper["missing"]:
        yield from (f"{paper['source']}: {paper['missing']}.", "")
    for one in paper["figures"]:
        keys = [key for key in CATALOGUE if any(key in row["metrics"] for row in one["lines"])]
        header = ["method", "removed", *(CATALOGUE[key].title for key in keys)]
        rows = [
            [row["method"], _share(row["sparsity"]),
             *(f"{row['metrics'][key]:g}" if key in row["metrics"] else "–" for key in keys)]
            for row in one["lines"]
        ]  # fmt: skip
        yield from (f"{one['model']}: {one['setting']} ({paper['source']})", "")
        yield from (*table(header, rows), "")


def _share(sparsity: float | str) -> str:
    if isinstance(sparsity, str):
        return sparsity
    return f"{100 * sparsity:g} %" if sparsity else "–"


def _protocol(results: Mapping[str, Any]) -> Iterator[str]:
    """What a reader needs to repeat it, a line each."""
    for key, value in results["protocol"].items():
        if value is not None and value != {}:
            yield f"- {key}: {_words(value)}"
    for note in sorted({f"{m['title']}: {m['note']}" for m in results.get("metrics", {}).values()
                        if m["note"]}):  # fmt: skip
        yield f"- {note}"
    if "metrics" in results:
        yield "- in brackets: 95 % bootstrap intervals"


def _words(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {one}" for name, one in value.items())
    if isinstance(value, (list, tuple)):
        shown = ", ".join(str(one) for one in value[:8])
        return shown + (f" … ({len(value)})" if len(value) > 8 else "")
    return str(value)
