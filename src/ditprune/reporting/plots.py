"""How does the page plot its numbers? As inline SVG in the colours of the page.

The only text from the results in a plot is the title of its metric; a legend beside the plot names
the models.
"""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from ditprune.reporting.formats import TEMPLATES, titled

# The hues are those of Okabe and Ito (2008). On light paper they differ in lightness too, so that
# they stand out 3 : 1 (WCAG 2.2, 1.4.11) and stay apart for eyes without one kind of cones.
SERIES = {
    "light": ("#0a5aa4", "#782505", "#0da870", "#572346", "#a37f0c"),
    "dark": ("#56b4e9", "#ff9248", "#2fd0a5", "#e79ac6", "#f0e442"),
}
NUM_COLOURS = len(SERIES["light"])
PAPER = {"light": "#ffffff", "dark": "#14171c"}
INK = {"light": "#1b1e23", "dark": "#e7e9ec"}
# The strong end of a heat map; ink is read on every shade between it and paper.
HEAT = {"light": "#86bde3", "dark": "#1f5f8c"}
# As matplotlib calls them, and as text beside the plots shows them.
MARKS = (("o", "●"), ("s", "■"), ("^", "▲"), ("D", "◆"), ("v", "▼"), ("P", "✚"), ("X", "✖"))

# Colours that stand for variables of the page; nothing draws in them by itself.
_INK, _FAINT = "#010101", "#010102"
_SERIES = tuple(f"#0202{number:02x}" for number in range(NUM_COLOURS))
_VARIABLES = {_INK: "currentColor", _FAINT: "var(--faint)"} | {
    colour: f"var(--series-{number})" for number, colour in enumerate(_SERIES)
}
_INCHES = (4.2, 2.7)
# An error that spans more than this is drawn on a logarithmic axis.
_LOGARITHMIC_FROM = 30


def quality(key: str, metric: Mapping[str, Any], models: Sequence[Mapping[str, Any]]) -> str:
    """A metric against sparsity, with 95 % intervals; the dense model is a line across.

    Args:
        models: as in results.json, the dense one first.
    """

    def draw(axes: Any) -> None:
        dense = models[0]["metrics"].get(key)
        if dense is not None:
            axes.axhline(dense["value"], color=_INK, linestyle="--", linewidth=1)
            if dense["low"] is not None and dense["high"] is not None:
                axes.axhspan(dense["low"], dense["high"], color=_FAINT, alpha=0.35, linewidth=0)
        for number, model in enumerate(models[1:]):
            measured = model["metrics"].get(key)
            if measured is not None:
                bar = None if measured["low"] is None else error_bars(measured)
                axes.errorbar(
                    100 * model["sparsity"], measured["value"], bar, capsize=3, **_marks(number)
                )
        axes.set_xlim(-3, 103)
        axes.set_xlabel("target weights removed (%)")
        axes.set_ylabel(titled(metric), parse_math=False)  # a judge may name it "$x$"

    return _svg(f"quality-{key}", draw)


def timesteps(models: Sequence[Mapping[str, Any]]) -> str:
    """The relative error of what the pruned models predict, along the way from noise to image.

    The line has a gap where an error is no number; the plot is empty text if there is no error.
    """
    points = [point for model in models for point in model["error_by_timestep"]]
    errors = [point["error"] for point in points if point["error"] is not None]
    if not errors:
        return ""

    def draw(axes: Any) -> None:
        for number, model in enumerate(models[1:]):
            points = sorted(model["error_by_timestep"], key=lambda point: point["place"])
            if points:
                axes.plot(
                    [100 * point["place"] for point in points],
                    [math.nan if point["error"] is None else point["error"] for point in points],
                    **_marks(number),
                )
        if min(errors) > 0 and max(errors) > _LOGARITHMIC_FROM * min(errors):
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter("{x:g}")  # the default writes powers as formulas
            axes.yaxis.set_minor_formatter("")
        else:
            axes.set_ylim(bottom=0)
        axes.set_xlim(-3, 103)
        axes.set_xlabel("way from noise to image (%)")
        axes.set_ylabel("relative error")

    return _svg("timesteps", draw)


def error_bars(*measured: Mapping[str, Any]) -> list[list[float]]:
    """How far intervals reach below and above their values, as errorbar takes it."""
    ends = [(m["value"], m["low"], m["high"]) for m in measured]
    return [
        [math.nan if low is None else max(0.0, value - low) for value, low, _ in ends],
        [math.nan if high is None else max(0.0, high - value) for value, _, high in ends],
    ]


def _marks(number: int) -> dict[str, Any]:
    return {"color": _SERIES[number % NUM_COLOURS], "marker": MARKS[number % len(MARKS)][0]}


def _svg(name: str, draw: Any) -> str:
    """What `draw` puts on axes, as an SVG element that says nothing to a reader of screens.

    Args:
        name: makes the ids of this plot its own.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with (
        rc_context({"svg.hashsalt": name}, TEMPLATES / "plots.mplstyle"),
        warnings.catch_warnings(),
    ):
        # The browser draws the text, with fonts of its own.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure = Figure(figsize=_INCHES, layout="constrained")
        draw(figure.add_subplot())
        out = io.StringIO()
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None})
    return _inline(out.getvalue())


def _inline(document: str) -> str:
    """An SVG file as an element of a page: variables for colours, no ids that nothing names."""
    element = document[document.index("<svg") :]
    element = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", element, flags=re.DOTALL)
    named = set(re.findall(r'(?:href="#|url\(#)([\w-]+)', element))
    element = re.sub(r' id="([^"]*)"', lambda match: match[0] if match[1] in named else "", element)
    for colour, variable in _VARIABLES.items():
        element = element.replace(colour, variable)
    for _ in ("width", "height"):
        element = re.sub(r'(<svg[^>]*?) (?:width|height)="[^"]*"', r"\1", element, count=1)
    return element.replace("<svg", '<svg aria-hidden="true" focusable="false"', 1).strip()


def mark(number: int) -> str:
    """The shape of a model's marks, as a character; by its index among the pruned models."""
    return MARKS[number % len(MARKS)][1]
