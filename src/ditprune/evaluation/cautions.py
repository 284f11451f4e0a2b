"""What must be said beside the numbers of a model: few images, NaN and Inf, other loads."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ditprune.evaluation.catalogue import CATALOGUE, Metric
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


def cautions_of(
    name: str, models: Mapping[str, Numbers], num_images: int, widths: tuple[int, int],
    catalogue: Mapping[str, Metric] = CATALOGUE,
) -> list[str]:  # fmt: skip
    """Warnings about the sample, for one model.

    Args:
        models: the numbers of all models; the dense one is called `dense`.
        widths: how many features FID and sFID use.
        catalogue: the metrics of this run.
    """
    model = models[name]
    warnings = [
        f"{CATALOGUE[key].title} of {num_images:,} images in {width:,} features: fewer images "
        "than features make it larger than it is, and unsure"
        for key, width in zip(("fid", "sfid"), widths, strict=True)
        if key in model.intervals and num_images <= width
    ]
    for other in list(models)[: list(models).index(name)]:  # each pair once, with the later model
        alike = []
        for key, metric in catalogue.items():
            here, there = model.intervals.get(key), models[other].intervals.get(key)
            if here is None or there is None or here.value == there.value:
                continue
            is_apart = model.is_apart(key, models[other])
            if other == "dense" and key in _DISTANCES and here.value < there.value:
                warnings.append(_below_dense(metric, here, there, is_apart, num_images))
            elif not is_apart and (other != "dense" or metric.against != "dense"):
                alike.append(metric.title)
        if alike:
            titles = ", ".join(alike)
            warnings.append(f"{num_images:,} images cannot tell it from {other} by {titles}")
    return warnings


def _below_dense(
    metric: Metric, pruned: Interval, dense: Interval, is_apart: bool, num_images: int
) -> str:
    """What to know of a distance that is smaller than the dense model's."""
    numbers = (f"{interval.value:.{metric.digits}f}" for interval in (pruned, dense))
    below = f"{metric.title} {' is below dense '.join(numbers)}, and the intervals"
    if is_apart:
        return (
            f"{below} do not overlap: nearer to the reference, which is not the same as nearer to "
            "the dense model; look at the same-seed distances"
        )
    return f"{below} overlap: {num_images:,} images cannot tell them apart"


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
