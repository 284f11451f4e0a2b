"""What are the figures of a study? SVG files; series differ by colour and by mark."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise, product
from pathlib import Path
from typing import Any

from ditprune.reporting.plots import error_bars
from ditprune.reproduce.findings import share_text
from ditprune.writing.files import write_beside

# Okabe and Ito (2008): colours that hold for eyes of every kind.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
_MARKS = ("o", "s", "^", "D", "v", "P")
_METRICS = ("relative_error", "ssim", "fid", "clip_score", "image_reward")
_PANEL = (3.6, 2.7)  # inches
_ACROSS = {
    "sparsity": "target weights removed (%)", "method": "", "guidance_scale": "guidance scale",
}  # fmt: skip
_SIZES = {
    "input_mean": "mean |X|", "input_max": "max |X|", "ratio": "|W|/|X|",
    "squared_ratio": "|W|²/|X|",
}  # fmt: skip
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none", "svg.hashsalt": "ditprune", "font.size": 9, "axes.grid": True,
    "axes.spines.top": False, "axes.spines.right": False, "grid.linewidth": 0.4,
    "axes.titlesize": 9,
}  # fmt: skip


def draw_figures(results: Mapping[str, Any], axis: str, folder: Path) -> list[str]:
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
            figures = {f"map-{m['name']}": _map(m, results["rows"]) for m in results["maps"]}
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
    for number, (count, key) in enumerate(product(steps, keys), start=1):
        panel, metric = figure.add_subplot(len(steps), len(keys), number), results["metrics"][key]
        alike = [row for row in rows if row["setting"]["num_inference_steps"] == count]
        _panel(panel, alike, key, axis)
        panel.set_ylabel(f"{metric['title']} {metric['unit']}".strip())
        panel.set_title("" if count is None else f"{count} steps")
    _legend(figure)
    return figure


def _panel(panel: Any, rows: Sequence[Mapping[str, Any]], key: str, axis: str) -> None:
    dense = [row["metrics"][key] for row in rows if row["recipe"] is None]
    if axis != "guidance_scale" and dense and dense[0] is not None:
        panel.axhline(
            dense[0]["value"], color="#555555", linestyle="--", linewidth=1, label="dense"
        )
    for number, (name, group) in enumerate(_series(rows, axis).items()):
        points = [(_across(row, axis), row["metrics"][key]) for row in group]
        points = [(across, measured) for across, measured in points if measured is not None]
        if points:
            panel.errorbar(
                [across for across, _ in points],
                [measured["value"] for _, measured in points],
                yerr=error_bars(*(measured for _, measured in points)),
                capsize=3,
                linestyle="none" if axis == "method" else "-",
                **_look(name, number),
            )
    panel.set_xlabel(_ACROSS[axis])
    if axis == "method":
        panel.tick_params(axis="x", labelrotation=20)
        panel.margins(x=0.15)


def _look(label: str, number: int) -> dict[str, Any]:
    """The colour and the mark of a series."""
    mark = _MARKS[number % len(_MARKS)]
    return {"label": label, "color": _COLOURS[number % len(_COLOURS)], "marker": mark}


def _series(rows: Sequence[Mapping[str, Any]], axis: str) -> dict[str, list[Mapping[str, Any]]]:
    """The rows that one line joins: those of a method, or of a share if methods are the axis."""
    series: dict[str, list[Mapping[str, Any]]] = {}
    has_many = len({row["setting"]["guidance_scale"] for row in rows}) > 1
    for row in rows:
        setting, is_dense = row["setting"], row["recipe"] is None
        if is_dense and axis != "guidance_scale":
            continue
        share = share_text(row)
        guidance = f", guidance {setting['guidance_scale']:g}" if has_many else ""
        name = {
            "method": f"{share}{guidance}",
            "sparsity": f"{row['name']}{guidance}",
            "guidance_scale": "dense" if is_dense else f"{row['name']}, {share}",
        }[axis]
        series.setdefault(name, []).append(row)
    return series


def _across(row: Mapping[str, Any], axis: str) -> Any:
    if axis == "method":
        return row["name"]
    return 100 * row["sparsity"] if axis == "sparsity" else row["setting"]["guidance_scale"]


def _histograms(results: Mapping[str, Any]) -> Any:
    figure = _figure(1, 1)
    panel = figure.add_subplot()
    middles = [(low * high) ** 0.5 for low, high in pairwise(results["histograms"]["edges"])]
    for number, (role, counts) in enumerate(results["histograms"]["counts"].items()):
        shares = [100 * count / sum(counts) for count in counts]
        panel.plot(middles, shares, markersize=3, **_look(role, number))
    panel.set(xscale="log", xlabel="|W|", ylabel="share of the weights (%)")
    _legend(figure)
    return figure


def _sizes(results: Mapping[str, Any]) -> Any:
    """Each number against depth, a line for each kind of layer."""
    layers = list(dict.fromkeys(row["layer"] for row in results["rows"]))
    figure = _figure(2, 2)
    for position, (key, title) in enumerate(_SIZES.items(), start=1):
        panel = figure.add_subplot(2, 2, position)
        for number, layer in enumerate(layers):
            alike = [row for row in results["rows"] if row["layer"] == layer and row[key]]
            depths, values = [row["depth"] for row in alike], [row[key] for row in alike]
            style = "-" if number < len(_COLOURS) else "--"
            panel.plot(depths, values, markersize=3, linestyle=style, **_look(layer, number))
        panel.set(yscale="log", xlabel="depth (block)", ylabel=title)
    _legend(figure)
    return figure


def _map(drawn: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> Any:
    """The scores of one layer, output channels downwards; black is what matters least."""
    from matplotlib.colors import LogNorm

    (row,) = (row for row in rows if row["name"] == drawn["name"])
    positive = [score for line in drawn["map"] for score in line if score > 0]
    figure = _figure(1.4, 1.5)
    panel = figure.add_subplot()
    height, width = row["shape"]
    image = panel.imshow(
        drawn["map"], cmap="magma", aspect="auto", interpolation="nearest",
        norm=LogNorm(min(positive), max(positive)) if positive else None,
        extent=(0, width, height, 0),
    )  # fmt: skip
    panel.grid(visible=False)
    panel.set(xlabel="input channel", ylabel="output channel")
    panel.set_title(f"{drawn['name']}: G_out {row['g_out']:.3g}, {row['granularity']}")
    figure.colorbar(image, label="|W|²·‖X‖₂")
    return figure


def _figure(across: float, down: float) -> Any:
    from matplotlib.figure import Figure

    return Figure(figsize=(_PANEL[0] * across, _PANEL[1] * down + 0.4), layout="constrained")


def _legend(figure: Any) -> None:
    """One legend for all panels, below them."""
    labelled: dict[str, Any] = {}
    for panel in figure.axes:
        handles, labels = panel.get_legend_handles_labels()
        labelled |= dict(zip(labels, handles, strict=True))
    if labelled:
        figure.legend(
            list(labelled.values()), list(labelled), loc="outside lower center",
            ncols=min(4, len(labelled)), frameon=False,
        )  # fmt: skip
