"""What must a reader of the numbers be told: too small a sample, or a model that gives NaN?"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ditprune.evaluation.catalogue import CATALOGUE
from ditprune.evaluation.drawing import Timing
from ditprune.evaluation.metrics.error_rows import ErrorRow
from ditprune.evaluation.metrics.interval import Interval, differ, overlap

_DISTANCES = ("fid", "sfid", "kid")
_ADVICE = (
    "evaluate with another --dtype (float16 overflows where bfloat16 and float32 do not), or look "
    "for NaN and Inf in the weights"
)


@dataclass(frozen=True)
class Numbers:
    """The numbers of one model.

    Args:
        intervals: by metric.
        values: for metrics that are means over items, the number of each item. Items are the same
            for all models, so models are compared item by item.
    """

    intervals: Mapping[str, Interval]
    values: Mapping[str, Sequence[float]] = field(default_factory=dict)

    def is_apart(self, key: str, other: Numbers) -> bool:
        """Whether the sample tells two models apart by a metric that both have."""
        if key in self.values and key in other.values:
            return differ(self.values[key], other.values[key])
        return not overlap(self.intervals[key], other.intervals[key])

    def text(self, key: str) -> str:
        """The value of a metric, with its digits."""
        return f"{self.intervals[key].value:.{CATALOGUE[key].digits}f}"


def cautions_of(
    name: str, models: Mapping[str, Numbers], num_images: int, widths: tuple[int, int]
) -> list[str]:
    """Warnings about the sample, for one model.

    Args:
        models: the numbers of all models; the dense one is called `dense`.
        widths: how many features FID and sFID use.
    """
    model = models[name]
    warnings = [
        f"{CATALOGUE[key].title} of {num_images:,} images in {width:,} features: fewer images "
        "than features make it larger than it is, and unsure"
        for key, width in zip(("fid", "sfid"), widths, strict=True)
        if key in model.intervals and num_images <= width
    ]
    if name != "dense":
        warnings += _against_dense(model, models["dense"], num_images)
    for other in list(models)[: list(models).index(name)]:  # each pair once, with the later model
        if other != "dense":
            alike = [
                CATALOGUE[key].title
                for key in _shared(model, models[other])
                if not model.is_apart(key, models[other])
            ]
            warnings += _not_told_apart(other, alike, num_images)
    return warnings


def _against_dense(model: Numbers, dense: Numbers, num_images: int) -> list[str]:
    warnings, alike = [], []
    for key in _shared(model, dense):
        if CATALOGUE[key].against == "dense":
            continue
        title, is_apart = CATALOGUE[key].title, model.is_apart(key, dense)
        if key in _DISTANCES and model.intervals[key].value < dense.intervals[key].value:
            below = f"{title} {model.text(key)} is below dense {dense.text(key)}"
            warnings.append(
                f"{below}, and the intervals do not overlap: nearer to the reference, which is not "
                "the same as nearer to the dense model; look at the same-seed distances"
                if is_apart
                else f"{below}, and the intervals overlap: {num_images:,} images cannot tell them "
                "apart"
            )
        elif not is_apart:
            alike.append(title)
    return warnings + _not_told_apart("dense", alike, num_images)


def _not_told_apart(other: str, titles: Sequence[str], num_images: int) -> list[str]:
    if not titles:
        return []
    return [f"{num_images:,} images cannot tell it from {other} by {', '.join(titles)}"]


def _shared(a: Numbers, b: Numbers) -> list[str]:
    """The metrics that both models have, with different numbers, in the catalogue's order."""
    return [
        key for key in CATALOGUE
        if key in a.intervals and key in b.intervals
        and a.intervals[key].value != b.intervals[key].value
    ]  # fmt: skip


def not_finite_warnings(rows: Sequence[ErrorRow], num_spoiled: int, num_images: int) -> list[str]:
    """Warnings about NaN and Inf, for one model.

    Args:
        rows: of its held-out calls; empty for the dense model.
        num_spoiled: images with a pixel that was not finite.
    """
    of_dense = sum(not math.isfinite(row.dense) for row in rows)
    of_pruned = sum(math.isfinite(row.dense) and not math.isfinite(row.difference) for row in rows)
    warnings = [
        f"{whose} predictions are not finite (NaN or Inf) in {count:,} of {len(rows):,} rows of "
        f"held-out calls, so the relative error has no number there: {_ADVICE}"
        for whose, count in (("the dense model's", of_dense), ("its", of_pruned))
        if count
    ]
    if num_spoiled:
        warnings.append(
            f"{num_spoiled:,} of {num_images:,} images are not finite (NaN or Inf), and shown "
            f"with black for NaN: {_ADVICE}"
        )
    return warnings


def why_no_seconds(timing: Timing, dense: Timing) -> str | None:
    """Why the seconds of a model would mislead beside those of the dense model; None if not."""
    loads, dense_loads = " and ".join(timing.loads), " and ".join(dense.loads)
    if len(timing.loads) > 1:
        return f"no seconds: its images were drawn under several loads, {loads}"
    if timing.loads != dense.loads:
        return (
            f"no seconds: its images were drawn under another load ({loads}) than the "
            f"dense model's ({dense_loads}); without kept images both are drawn alike"
        )
    return None
