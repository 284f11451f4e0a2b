"""What must a reader know beside the numbers? Each thing once, with the names that it is about."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

_BELOW_ZERO = (
    "an unbiased estimate of a distance, which chance takes below 0 where the distance is near 0; "
    "a number below 0 is no better than 0"
)


def merged(pairs: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """(names, text) with each text once and the names of all that it is about, in their order."""
    names: dict[str, list[str]] = {}
    for name, text in pairs:
        names.setdefault(text, []).append(name)
    return [(", ".join(dict.fromkeys(about)), text) for text, about in names.items()]


def warnings_of(models: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """The warnings of all models, as (names, text)."""
    return merged((model["name"], text) for model in models for text in model["warnings"])


def told_of(models: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """What was dropped or not reached when the models were pruned, as (names, text)."""
    # Absent in results written before it was told.
    return merged((model["name"], text) for model in models for text in model.get("told", ()))


def metric_notes(
    metrics: Mapping[str, Mapping[str, Any]], models: Sequence[Mapping[str, Any]]
) -> list[tuple[str, str]]:
    """What to know of the metrics that were measured, as (titles, text)."""
    measured = {key: metric for key, metric in metrics.items() if not metric["unavailable"]}
    below = [key for key in measured if key == "kid" and _lowest(key, models) < 0]
    return merged(
        [
            *((metric["title"], metric["note"]) for metric in measured.values() if metric["note"]),
            *((measured[key]["title"], _BELOW_ZERO) for key in below),
        ]
    )


def unavailable_notes(metrics: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, str]]:
    """What was not measured, as (titles, reason)."""
    return merged((m["title"], m["unavailable"]) for m in metrics.values() if m["unavailable"])


def _lowest(key: str, models: Sequence[Mapping[str, Any]]) -> float:
    numbers = [
        number
        for model in models
        for number in (model["metrics"].get(key) or {}).values()
        if number is not None
    ]
    return min(numbers, default=0.0)
