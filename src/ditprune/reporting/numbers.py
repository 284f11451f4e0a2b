"""Values as people read them: metrics with their intervals, counts, seconds, shares, lists."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

NONE = "–"
# Longer lists (prompts, labels) are cut there.
MOST_LISTED = 8
_SCALES = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def estimate(one: Mapping[str, Any] | None, metric: Mapping[str, Any]) -> str:
    """`0.083 [0.070, 0.100]`; without an interval, the value alone."""
    if one is None:
        return NONE
    return " ".join(part for part in (point(one, metric), interval(one, metric)) if part)


def point(one: Mapping[str, Any] | None, metric: Mapping[str, Any]) -> str:
    """The value in the metric's digits."""
    return NONE if one is None else _fixed(one["value"], metric)


def interval(one: Mapping[str, Any] | None, metric: Mapping[str, Any]) -> str:
    """`[0.070, 0.100]`, or nothing where there is none."""
    if one is None or one["low"] is None or one["high"] is None:
        return ""
    return f"[{_fixed(one['low'], metric)}, {_fixed(one['high'], metric)}]"


def titled(metric: Mapping[str, Any]) -> str:
    """The metric's name with its unit, as an axis or a column has it."""
    return f"{metric['title']} ({metric['unit']})" if metric["unit"] else str(metric["title"])


def direction(metric: Mapping[str, Any]) -> str:
    """Which way is better, in words."""
    return {"lower": "lower is better", "higher": "higher is better"}.get(metric["better"], "")


def brief(number: float | None, digits: int = 4) -> str:
    """`0.01234`, to so many digits."""
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
    """`11.2 MB`."""
    return count(num_bytes, "B")


def seconds(number: float | None) -> str:
    """`0.0123 s`, to three digits."""
    return NONE if number is None else f"{number:.3g} s"


def percent(share: float | None, digits: int = 1) -> str:
    """`50 %`, `49.9 %`."""
    if share is None:
        return NONE
    text = f"{100 * share:.{digits}f}"
    return f"{text.rstrip('0').rstrip('.') if '.' in text else text} %"


def change(value: float | None, dense: float | None) -> str:
    """`−47.1 %` against dense; nothing where either is unknown."""
    if value is None or not dense:
        return ""
    share = value / dense - 1
    return "same" if abs(share) < 5e-4 else f"{'−' if share < 0 else '+'}{percent(abs(share))}"


def listed(value: Any) -> str:
    """`a, b`, `numpy 2.0, torch 2.5`; of a long list its beginning and how many there are."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {listed(one)}" for key, one in value.items())
    if isinstance(value, (list, tuple)):
        more = f" … ({len(value)} in all)" if len(value) > MOST_LISTED else ""
        return ", ".join(listed(one) for one in value[:MOST_LISTED]) + more
    return str(value)


def _fixed(value: float, metric: Mapping[str, Any]) -> str:
    return f"{value:.{int(metric['digits'])}f}".replace("-", "−")
