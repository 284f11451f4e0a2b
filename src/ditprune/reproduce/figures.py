"""The pictures of a study, as SVG with titles, axes and units; series by colour and by mark."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from ditprune.writing.files import write_beside

# Okabe and Ito (2008): colours that hold for eyes of every kind.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
_MARKS = ("o", "s", "^", "D", "v", "P")
_METRICS = ("relative_error", "ssim", "fid", "clip_score", "image_reward")
_PANEL = (3.6, 2.7)  # inches
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none", "svg.hashsalt": "ditprune", "font.size": 9, "axes.grid": True,
    "axes.spines.top": False, "axes.spines.right": False, "grid.linewidth": 0.4,
    "axes.titlesize": 9,
}  # fmt: skip


def draw(results: Mapping[str, Any], axis: str, folder: Path) -> list[str]:
    """Write the figures of one study; their file names. Raises OutputError.

    Args:
        results: as in results.json, with the `maps` of `importance` beside.
        axis: of the study.
    """
    from matplotlib import rc_context

    with rc_context(_STYLE):
        if results["study"] == "statistics":
            figures = {"histograms": _histograms(results), "sizes": _sizes(results)}
        elif results["study"] == "importance":
            figures = {f"map-{one['name']}": _map(one, results["rows"]) for one in results["maps"]}
        else:
            figures = {results["study"]: _panels(results, axis)}
        for name, figure in figures.items():
            with write_beside(folder / f"{name}.svg") as part:
                figure.savefig(part, format="svg", metadata={"Date": None})
    return [f"{name}.svg" for name in figures]


def _panels(results: Mapping[str, Any], axis: str) -> Any:
    """A row of panels for each number of steps, a panel for each metric that there is."""
    rows = results["rows"]
    keys = [k for k in _METRICS if any(row["metrics"].get(k) is not None for row in rows)]
    steps = list(dict.fromkeys(row["setting"]["num_inference_steps"] for row in rows))
    figure = _figure(len(keys), len(steps))
    for down, count in enumerate(steps):
        own = [row for row in rows if row["setting"]["num_inference_steps"] == count]
        for across, key in enumerate(keys):
            panel = figure.add_subplot(len(steps), len(keys), down * len(keys) + across + 1)
            metric = results["metrics"][key]
            _panel(panel, own, key, axis)
            panel.set_ylabel(f"{metric['title']} {metric['unit']}".strip())
            panel.set_title("" if count is None else f"{count} steps")
    _legend(figure)
    return figure


def _panel(panel: Any, rows: Sequence[Mapping[str, Any]], key: str, axis: str) -> None:
    dense = [row["metrics"][key] for row in rows if row["recipe"] is None]
    if axis != "guidance_scale" and dense and dense[0] is not None:
        panel.axhline(dense[0]["value"], color="#555555", linestyle="--", linewidth=1,
                      label="dense")  # fmt: skip
    for number, (name, own) in enumerate(_series(rows, axis).items()):
        points = [(_place(row, axis), row["metrics"][key]) for row in own]
        points = [(place, one) for place, one in points if one is not None]
        if points:
            panel.errorbar(
                [place for place, _ in points], [one["value"] for _, one in points],
                yerr=_reach([one for _, one in points]), label=name, capsize=3,
                color=_COLOURS[number % len(_COLOURS)], marker=_MARKS[number % len(_MARKS)],
                linestyle="none" if axis == "method" else "-",
            )  # fmt: skip
    panel.set_xlabel({"sparsity": "target weights removed (%)", "method": "",
                      "guidance_scale": "guidance scale"}[axis])  # fmt: skip
    if axis == "method":
        panel.tick_params(axis="x", labelrotation=20)
        panel.margins(x=0.15)


def _series(rows: Sequence[Mapping[str, Any]], axis: str) -> dict[str, list[Mapping[str, Any]]]:
    """What one line joins: a method, or where methods stand side by side the rest."""
    series: dict[str, list[Mapping[str, Any]]] = {}
    has_many = len({row["setting"]["guidance_scale"] for row in rows}) > 1
    for row in rows:
        own = row["setting"]
        if row["recipe"] is None and axis != "guidance_scale":
            continue
        share = own["pattern"] or f"{100 * own['sparsity']:g} %"
        guidance = f", guidance {own['guidance_scale']:g}" if has_many else ""
        name = f"{share}{guidance}"
        if axis == "sparsity":
            name = f"{row['name']}{guidance}"
        elif axis == "guidance_scale":
            name = "dense" if row["recipe"] is None else f"{row['name']}, {share}"
        series.setdefault(name, []).append(row)
    return series


def _place(row: Mapping[str, Any], axis: str) -> Any:
    if axis == "method":
        return row["name"]
    return 100 * row["sparsity"] if axis == "sparsity" else row["setting"]["guidance_scale"]


def _reach(estimates: Sequence[Mapping[str, Any]]) -> list[list[float]]:
    """How far the intervals reach below and above the values."""
    ends = [(one["value"], one["low"], one["high"]) for one in estimates]
    return [
        [max(0.0, value - low) if low is not None else 0.0 for value, low, _ in ends],
        [max(0.0, high - value) if high is not None else 0.0 for value, _, high in ends],
    ]


def _histograms(results: Mapping[str, Any]) -> Any:
    figure = _figure(1, 1)
    panel = figure.add_subplot()
    edges = results["histograms"]["edges"]
    middles = [(low * high) ** 0.5 for low, high in pairwise(edges)]
    for number, (role, counts) in enumerate(results["histograms"]["counts"].items()):
        total = sum(counts)
        shares = [100 * count / total for count in counts]
        panel.plot(middles, shares, label=role, color=_COLOURS[number % len(_COLOURS)],
                   marker=_MARKS[number % len(_MARKS)], markersize=3)  # fmt: skip
    panel.set_xscale("log")
    panel.set_xlabel("|W|")
    panel.set_ylabel("share of the weights (%)")
    _legend(figure)
    return figure


def _sizes(results: Mapping[str, Any]) -> Any:
    """Each number against depth, a line for each kind of layer."""
    titles = {"input_mean": "mean |X|", "input_max": "max |X|", "ratio": "|W|/|X|",
              "squared_ratio": "|W|²/|X|"}  # fmt: skip
    layers = list(dict.fromkeys(row["layer"] for row in results["rows"]))
    figure = _figure(2, 2)
    for place, (key, title) in enumerate(titles.items(), start=1):
        panel = figure.add_subplot(2, 2, place)
        for number, layer in enumerate(layers):
            own = [row for row in results["rows"] if row["layer"] == layer and row[key]]
            panel.plot([row["depth"] for row in own], [row[key] for row in own], label=layer,
                       color=_COLOURS[number % len(_COLOURS)], markersize=3,
                       marker=_MARKS[number % len(_MARKS)],
                       linestyle="-" if number < len(_COLOURS) else "--")  # fmt: skip
        panel.set_yscale("log")
        panel.set_xlabel("depth (block)")
        panel.set_ylabel(title)
    _legend(figure)
    return figure


def _map(one: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> Any:
    """One layer's scores, output channels downwards; black is what matters least."""
    from matplotlib.colors import LogNorm

    (row,) = (row for row in rows if row["name"] == one["name"])
    flat = [value for line in one["map"] for value in line if value > 0]
    figure = _figure(1.4, 1.5)
    panel = figure.add_subplot()
    height, width = row["shape"]
    shown = panel.imshow(
        one["map"], cmap="magma", aspect="auto", interpolation="nearest",
        norm=LogNorm(min(flat), max(flat)) if flat else None,
        extent=(0, width, height, 0),
    )  # fmt: skip
    panel.grid(visible=False)
    panel.set_xlabel("input channel")
    panel.set_ylabel("output channel")
    panel.set_title(f"{one['name']}: G_out {row['g_out']:.3g}, {row['granularity']}")
    figure.colorbar(shown, label="|W|²·‖X‖₂")
    return figure


def _figure(across: float, down: float) -> Any:
    from matplotlib.figure import Figure

    return Figure(figsize=(_PANEL[0] * across, _PANEL[1] * down + 0.4), layout="constrained")


def _legend(figure: Any) -> None:
    """One legend for all panels, below them."""
    found = dict(_labelled(figure))
    if found:
        figure.legend(list(found.values()), list(found), loc="outside lower center",
                      ncols=min(4, len(found)), frameon=False)  # fmt: skip


def _labelled(figure: Any) -> Iterator[tuple[str, Any]]:
    for panel in figure.axes:
        handles, labels = panel.get_legend_handles_labels()
        yield from zip(labels, handles, strict=True)
