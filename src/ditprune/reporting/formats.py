"""How are values written for people: numbers, sizes, durations, words and templates?"""

from __future__ import annotations

import html
import re
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

NONE = "–"
# Lists longer than this (prompts, labels) are cut.
MOST_LISTED = 8
_SCALES = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def with_interval(measured: Mapping[str, Any] | None, metric: Mapping[str, Any]) -> str:
    """`0.083 [0.070, 0.100]`; the value alone if there is no interval."""
    return " ".join(part for part in (point(measured, metric), brackets(measured, metric)) if part)


def point(measured: Mapping[str, Any] | None, metric: Mapping[str, Any]) -> str:
    """The value in the metric's digits."""
    return NONE if measured is None else _fixed(measured["value"], metric)


def brackets(measured: Mapping[str, Any] | None, metric: Mapping[str, Any]) -> str:
    """`[0.070, 0.100]`, or nothing if there is no interval."""
    if measured is None or measured["low"] is None or measured["high"] is None:
        return ""
    return f"[{_fixed(measured['low'], metric)}, {_fixed(measured['high'], metric)}]"


def titled(metric: Mapping[str, Any]) -> str:
    """The metric's name with its unit, as the title of an axis or a column."""
    return f"{metric['title']} ({metric['unit']})" if metric["unit"] else str(metric["title"])


def direction(metric: Mapping[str, Any]) -> str:
    """Which way is better, in words."""
    return {"lower": "lower is better", "higher": "higher is better"}.get(metric["better"], "")


def brief(number: float | None, digits: int = 4) -> str:
    """`0.01234`, with this many significant digits."""
    return NONE if number is None else f"{number:.{digits}g}"


def count(number: float | None, unit: str = "") -> str:
    """`5.58 M`, `1.2 TMAC`."""
    if number is None:
        return NONE
    for scale, prefix in _SCALES:
        if abs(number) >= scale:
            return f"{number / scale:.3g} {prefix}{unit}"
    return f"{number:g} {unit}".rstrip()


def size(num_bytes: float | None) -> str:
    """`310 kB`, `11.2 MB`, `23.8 GB`."""
    return count(num_bytes, "B")


def seconds(number: float | None) -> str:
    """`0.0123 s`, to three digits."""
    return NONE if number is None else f"{number:.3g} s"


def duration(number: float) -> str:
    """Seconds as `4.2 s`, `42 s`, `3.5 min` or `2.1 h`."""
    if number < 90:
        return f"{number:.0f} s" if number >= 9.5 else f"{number:.1f} s"
    return f"{number / 60:.1f} min" if number < 5400 else f"{number / 3600:.1f} h"


def percent(share: float | None, digits: int = 1) -> str:
    """`50 %`, `49.9 %`."""
    if share is None:
        return NONE
    text = f"{100 * share:.{digits}f}"
    return f"{text.rstrip('0').rstrip('.') if '.' in text else text} %"


def change(value: float | None, dense: float | None) -> str:
    """`−47.1 %` against dense; nothing if either is unknown."""
    if value is None or not dense:
        return ""
    share = value / dense - 1
    return "same" if abs(share) < 5e-4 else f"{'−' if share < 0 else '+'}{percent(abs(share))}"


def listed(value: Any) -> str:
    """`a, b`, `numpy 2.0, torch 2.5`; a long list is cut, with its length at the end."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {listed(item)}" for key, item in value.items())
    if isinstance(value, (list, tuple)):
        more = f" … ({len(value)} in all)" if len(value) > MOST_LISTED else ""
        return ", ".join(listed(item) for item in value[:MOST_LISTED]) + more
    return str(value)


def _fixed(value: float, metric: Mapping[str, Any]) -> str:
    return f"{value:.{int(metric['digits'])}f}".replace("-", "−")


TEMPLATES = Path(__file__).parent / "templates"


def fill(name: str, is_html: bool = False, **context: Any) -> str:
    """The text of a template; `n` is this module there.

    Args:
        is_html: whether values are escaped.

    Raises jinja2.UndefinedError for a value that the template names and `context` lacks.
    """
    text = _environment(is_html).get_template(name).render(n=sys.modules[__name__], **context)
    return text.encode("utf-8", "backslashreplace").decode()  # names of files may hold no UTF-8


@cache
def _environment(is_html: bool) -> Any:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=is_html, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters.update(words=words, fenced=fenced)
    return environment


def words(text: object) -> str:
    """Text as one line of Markdown that shows it as it is."""
    line = " ".join("".join(c if c.isprintable() else " " for c in str(text)).split())
    return re.sub(r"([\\`*_\[\]|~])", r"\\\1", html.escape(line, quote=False))


def fenced(text: str, language: str = "") -> str:
    """A block of code whose fence is longer than any in it."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text}\n{fence}"
