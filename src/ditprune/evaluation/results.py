"""What stands in results.json (format 2)? Numbers with intervals, the protocol, and warnings."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from ditprune.denoiser.placement import Placement
from ditprune.evaluation.accounting import Stock, Work, account
from ditprune.evaluation.catalogue import CATALOGUE, Metric
from ditprune.evaluation.claims import Claims, target_rows
from ditprune.evaluation.drawing import Timing
from ditprune.evaluation.gallery import gallery_entries, save_grid
from ditprune.evaluation.measure import Measured
from ditprune.evaluation.metrics.error_rows import ErrorRow, error_by_timestep
from ditprune.evaluation.metrics.interval import Interval, differ, overlap
from ditprune.evaluation.protocol import Protocol
from ditprune.evaluation.tools import Tools, library_versions
from ditprune.evaluation.user_judge import without_nan
from ditprune.reporting.commands import repeat_commands
from ditprune.writing.files import installed_versions, write_beside

FORMAT = 2
_DISTANCES = ("fid", "sfid", "kid")
_ADVICE = (
    "evaluate with another --dtype (float16 overflows where bfloat16 and float32 do not), or look "
    "for NaN and Inf in the weights"
)
_NUM_COLUMNS = 10  # of the grid


@dataclass(frozen=True)
class MeasuredModel:
    """All that is known of one model.

    Args:
        rows: of the held-out calls; empty for the dense model.
    """

    name: str
    claims: Claims
    stock: Stock
    measured: Measured
    rows: tuple[ErrorRow, ...]


def results_of(
    models: Sequence[MeasuredModel], tools: Tools, work: Work | None, protocol: Mapping[str, Any],
    command: str | None, dense: str,
) -> dict[str, Any]:  # fmt: skip
    """Everything but the gallery.

    Args:
        models: the dense one first.
        protocol: from `protocol_json`.
        dense: the dense model as the user wrote it.
    """
    numbers = {
        model.name: Numbers(
            {k: i for k, i in model.measured.intervals.items() if math.isfinite(i.value)},
            _comparable(model.measured.values, tools),
        )
        for model in models
    }
    timings = [model.measured.images.timing() for model in models]
    seen = models[0].measured.features
    widths = (seen.pooled.shape[1], seen.spatial.shape[1]) if seen else (0, 0)
    rows = []
    for model, timing in zip(models, timings, strict=True):
        why = why_no_seconds(timing, timings[0])
        row = _row(model, tools, work, dense, None if why else timing.seconds_per_image)
        row["warnings"] = [
            *not_finite_warnings(model.rows, row["num_spoiled"], protocol["num_images"]),
            *cautions_of(
                model.name, numbers, protocol["num_images"], widths, CATALOGUE | tools.catalogue
            ),
            *([why] if why else []),
        ]
        rows.append(row)
    return {
        "format": FORMAT,
        "command": command,
        "protocol": dict(protocol),
        "metrics": {key: _metric_json(key, tools) for key in tools.catalogue},
        "models": rows,
    }


def _comparable(values: Mapping[str, Sequence[float]], tools: Tools) -> dict[str, Sequence[float]]:
    """The numbers of each item, without items to which a judge's metric does not apply."""
    judged = {} if tools.judge is None else tools.judge.metrics
    return {key: without_nan(items) if key in judged else items for key, items in values.items()}


def _metric_json(key: str, tools: Tools) -> dict[str, Any]:
    metric = tools.catalogue[key]
    return {
        **asdict(metric),
        "against": tools.reference.against.get(key, metric.against),
        "unavailable": tools.unavailable.get(key),
        "note": tools.note(key),
    }


def _row(
    model: MeasuredModel, tools: Tools, work: Work | None, dense: str, seconds: float | None
) -> dict[str, Any]:
    claims, is_dense = model.claims, model.name == "dense"
    manifest_says = {
        "recipe": claims.recipe, "statistics": claims.statistics, "mask": claims.has_mask,
    }  # fmt: skip
    calibrate, prune = repeat_commands(dense, model.name, manifest_says, claims.recipes)
    return {
        "name": model.name,
        "sparsity_asked": claims.asked,
        "sparsity": 0.0 if is_dense else model.stock.sparsity,
        "recipe": claims.recipe,
        "calibrate_command": calibrate,
        "command": prune,
        "told": list(claims.told),
        "metrics": {
            key: _interval_json(model.measured.intervals.get(key)) for key in tools.catalogue
        },
        "num_spoiled": model.measured.images.num_spoiled(),
        "error_by_timestep": error_by_timestep(model.rows),
        "accounting": account(model.stock, work, seconds),
        "targets": [] if is_dense else target_rows(claims, model.stock),
    }


def _interval_json(interval: Interval | None) -> dict[str, float | None] | None:
    """The numbers as JSON; None for those that are not finite."""
    if interval is None or not math.isfinite(interval.value):
        return None
    return {
        key: value if value is not None and math.isfinite(value) else None
        for key, value in asdict(interval).items()
    }


def protocol_json(
    protocol: Protocol, pipeline: Any, dense: str, like: Tensor, tools: Tools,
    placement: Placement,
) -> dict[str, Any]:  # fmt: skip
    """The `protocol` of results.json, for images [n, C, H, W] like these.

    Args:
        protocol: with the pipeline's defaults filled in.
        dense: the name of the dense model.
    """
    judge = {} if tools.judge is None else {"judge": tools.judge.name}
    return {
        **{k: list(v) if isinstance(v, tuple) else v for k, v in asdict(protocol).items()},
        "dense": dense,
        "pipeline": type(pipeline).__name__,
        "scheduler": type(pipeline.scheduler).__name__,
        "resolution": list(like.shape[2:]),
        "dtype": str(placement.dtype).removeprefix("torch."),
        "device": placement.device,
        "feature_extractor": tools.features_text,
        "reference": tools.reference.text,
        "clip_model": tools.clip_model,
        **judge,
        "versions": installed_versions() | library_versions(),
    }


def write_results(
    results: dict[str, Any], models: Sequence[MeasuredModel], asked: Sequence[Any],
    protocol: Protocol, out: Path,
) -> None:  # fmt: skip
    """Add the gallery, and write results.json and grid.png. Raises OutputError."""
    images = {model.name: model.measured.images for model in models}
    ssim = {model.name: model.measured.values["ssim"] for model in models[1:]}
    results["gallery"] = gallery_entries(images, ssim, asked, protocol)
    columns = range(min(_NUM_COLUMNS, protocol.num_images))
    save_grid({name: stored.take(columns) for name, stored in images.items()}, out / "grid.png")
    with write_beside(out / "results.json") as part:
        text = json.dumps(results, indent=1, allow_nan=False)
        part.write_text(text + "\n", encoding="utf-8")


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
