"""What stands in results.json (format 2)? Numbers with intervals, the protocol, and warnings."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ditprune.denoiser.placement import Placement
from ditprune.evaluation.accounting import Stock, Work, account
from ditprune.evaluation.catalogue import CATALOGUE, frames_note
from ditprune.evaluation.cautions import (
    Numbers,
    cautions_of,
    not_finite_warnings,
    why_no_seconds,
)
from ditprune.evaluation.claims import Claims, target_rows
from ditprune.evaluation.gallery import gallery_entries, save_grid
from ditprune.evaluation.measure import Measured
from ditprune.evaluation.metrics.error_rows import ErrorRow, error_by_timestep
from ditprune.evaluation.metrics.interval import Interval
from ditprune.evaluation.place import GRID, RESULTS
from ditprune.evaluation.protocol import Protocol
from ditprune.evaluation.tools import Tools, library_versions
from ditprune.evaluation.user_judge import without_nan
from ditprune.reporting.commands import repeat_commands
from ditprune.writing.files import installed_versions, write_beside

FORMAT = 2
_NUM_COLUMNS = 10  # of the grid


@dataclass(frozen=True)
class MeasuredModel:
    """All that is known of one model.

    Args:
        rows: of the held-out calls; empty for the dense model.
        work: of an image; that of the dense model, unless layers are smaller; None for no count.
    """

    name: str
    claims: Claims
    stock: Stock
    measured: Measured
    rows: tuple[ErrorRow, ...]
    work: Work | None = None


def results_of(
    models: Sequence[MeasuredModel], tools: Tools, protocol: Mapping[str, Any],
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
        row = _row(model, tools, dense, None if why else timing.seconds_per_image)
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
        "metrics": {
            key: _metric_json(key, tools, protocol.get("num_frames", 1)) for key in tools.catalogue
        },
        "models": rows,
    }


def _comparable(values: Mapping[str, Sequence[float]], tools: Tools) -> dict[str, Sequence[float]]:
    """The numbers of each item, without items to which a judge's metric does not apply."""
    judged = {} if tools.judge is None else tools.judge.metrics
    return {key: without_nan(items) if key in judged else items for key, items in values.items()}


def _metric_json(key: str, tools: Tools, num_frames: int) -> dict[str, Any]:
    metric, notes = tools.catalogue[key], (tools.note(key), frames_note(key, num_frames))
    return {
        **asdict(metric),
        "against": tools.reference.against.get(key, metric.against),
        "unavailable": tools.unavailable.get(key),
        "note": "; ".join(filter(None, notes)) or None,
    }


def _row(model: MeasuredModel, tools: Tools, dense: str, seconds: float | None) -> dict[str, Any]:
    claims, is_dense = model.claims, model.name == "dense"
    has_no_zeros = claims.is_shrunk and claims.recipe is None
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
        "accounting": account(
            model.stock, model.work, seconds, model.measured.images.timing().peak_memory_bytes
        ),
        "targets": [] if is_dense or has_no_zeros else target_rows(claims, model.stock),
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
    protocol: Protocol, pipeline: Any, dense: str, like: Tensor | None, tools: Tools,
    placement: Placement,
) -> dict[str, Any]:  # fmt: skip
    """The `protocol` of results.json, for images [n, F, C, H, W] like these, or for none.

    Args:
        protocol: with the pipeline's defaults filled in.
        dense: the name of the dense model.
    """
    judge = {} if tools.judge is None else {"judge": tools.judge.name}
    drawn: dict[str, Any] = {"num_images": 0}
    if like is not None:
        drawn = {"resolution": list(like.shape[3:])}
        drawn |= {"num_frames": like.shape[1]} if like.shape[1] > 1 else {}
    return {
        **{k: list(v) if isinstance(v, tuple) else v for k, v in asdict(protocol).items()},
        "dense": dense,
        "pipeline": type(pipeline).__name__,
        "scheduler": type(pipeline.scheduler).__name__,
        **drawn,
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
    results["gallery"] = []
    if images["dense"].num_images:
        ssim = {model.name: model.measured.values["ssim"] for model in models[1:]}
        results["gallery"] = gallery_entries(images, ssim, asked, protocol)
    with write_beside(out / RESULTS) as part:  # first, as it tells that the picture is ours
        text = json.dumps(results, indent=1, allow_nan=False)
        part.write_text(text + "\n", encoding="utf-8")
    if images["dense"].num_images:
        columns = range(min(_NUM_COLUMNS, protocol.num_images))
        save_grid({name: stored.take(columns) for name, stored in images.items()}, out / GRID)
