"""results.json, format 2: every number with its interval, its protocol and its warnings."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ditprune.denoiser.placement import Placement
from ditprune.evaluation import libraries
from ditprune.evaluation.accounting import Stock, Work, account
from ditprune.evaluation.catalogue import CATALOGUE
from ditprune.evaluation.cautions import Found, cautions
from ditprune.evaluation.claims import Claims, target_rows
from ditprune.evaluation.gallery import gallery
from ditprune.evaluation.grid import save_grid
from ditprune.evaluation.metrics import error_rows
from ditprune.evaluation.metrics.error_rows import Row
from ditprune.evaluation.metrics.interval import Estimate
from ditprune.evaluation.not_finite import finite, told
from ditprune.evaluation.protocol import Protocol
from ditprune.evaluation.store import Images
from ditprune.evaluation.timing import Timing, why_no_seconds
from ditprune.evaluation.tools import Tools
from ditprune.reporting.commands import repeat_commands
from ditprune.writing.files import installed_versions, write_beside

FORMAT = 2
_NUM_COLUMNS = 10  # of the grid


@dataclass(frozen=True)
class Model:
    """What was found of one model.

    Args:
        values: of the metrics that are means over items, the number of each item.
        ssim: of each image against the dense one; empty for the dense model.
        rows: of the held-out calls; empty for the dense model.
    """

    name: str
    claims: Claims
    stock: Stock
    images: Images
    estimates: Mapping[str, Estimate]
    values: Mapping[str, tuple[float, ...]]
    ssim: tuple[float, ...]
    rows: tuple[Row, ...]


def results_of(
    models: Sequence[Model], tools: Tools, work: Work | None, protocol: Mapping[str, Any],
    command: str, dense: str, widths: tuple[int, int],
) -> dict[str, Any]:  # fmt: skip
    """Everything but the gallery.

    Args:
        protocol: as `describe` gives it.
        dense: the dense model as the user wrote it.
        widths: how many features FID and sFID are of.
    """
    found = {model.name: Found(finite(model.estimates), model.values) for model in models}
    timings = [model.images.timing() for model in models]
    num_images = protocol["num_images"]
    return {
        "format": FORMAT,
        "command": command,
        "protocol": dict(protocol),
        "metrics": {key: _described(key, tools) for key in tools.chosen},
        "models": [
            _row(model, tools, work, dense, seconds)
            | {
                "warnings": [
                    *told(model.rows, model.images.num_spoiled(), num_images),
                    *cautions(model.name, found, num_images, widths),
                    *why,
                ]
            }
            for model, (seconds, why) in zip(models, _seconds(timings), strict=True)
        ],
    }


def _described(key: str, tools: Tools) -> dict[str, Any]:
    metric = CATALOGUE[key]
    against = tools.reference.against.get(key, metric.against)
    return {
        "title": metric.title,
        "better": metric.better,
        "unit": metric.unit,
        "digits": metric.digits,
        "against": against,
        "unavailable": tools.unavailable.get(key),
        "note": tools.note(key),
    }


def _seconds(timings: Sequence[Timing]) -> list[tuple[float | None, list[str]]]:
    """What each model took for an image, the dense one first; or none, and why."""
    found: list[tuple[float | None, list[str]]] = []
    for own in timings:
        why = why_no_seconds(own, timings[0] if found else None)
        found.append((None, [why]) if why else (own.seconds_per_image, []))
    return found


def _row(
    model: Model, tools: Tools, work: Work | None, dense: str, seconds: float | None
) -> dict[str, Any]:
    shares = {name: model.stock.shares(name) for name in model.stock.zeros}
    claims, is_dense = model.claims, model.name == "dense"
    manifest_says = {
        "recipe": claims.recipe, "statistics": claims.statistics, "mask": claims.has_mask,
    }  # fmt: skip
    calibrate, prune = repeat_commands(dense, model.name, manifest_says)
    return {
        "name": model.name,
        "sparsity_asked": claims.asked,
        "sparsity": 0.0 if is_dense else model.stock.sparsity,
        "recipe": claims.recipe,
        "calibrate_command": calibrate,
        "command": prune,
        "metrics": {key: _estimate(model.estimates.get(key)) for key in tools.chosen},
        "num_spoiled": model.images.num_spoiled(),
        "error_by_timestep": error_rows.by_timestep(model.rows),
        "accounting": account(model.stock, work, seconds),
        "targets": [] if is_dense else target_rows(claims, shares),
    }


def _estimate(one: Estimate | None) -> dict[str, float | None] | None:
    """Numbers of JSON; one that is not finite is none."""
    if one is None or not math.isfinite(one.value):
        return None
    return {
        key: value if value is not None and math.isfinite(value) else None
        for key, value in asdict(one).items()
    }


def describe(
    protocol: Protocol, pipeline: Any, dense: Path, like: Tensor, tools: Tools, place: Placement
) -> dict[str, Any]:
    """The `protocol` of results.json, for images like these [n, C, H, W].

    Args:
        protocol: as `resolved` gives it.
    """
    return {
        **{k: list(v) if isinstance(v, tuple) else v for k, v in asdict(protocol).items()},
        "dense": dense.resolve().name,
        "pipeline": type(pipeline).__name__,
        "scheduler": type(pipeline.scheduler).__name__,
        "resolution": list(like.shape[2:]),
        "dtype": str(place.dtype).removeprefix("torch."),
        "device": place.device,
        "feature_extractor": tools.features,
        "reference": tools.reference.text,
        "clip_model": tools.clip_model,
        "versions": installed_versions() | libraries.versions(),
    }


def write_results(
    results: dict[str, Any], models: Sequence[Model], asked: Sequence[Any], protocol: Protocol,
    out: Path,
) -> None:  # fmt: skip
    """Add the gallery, and write results.json and grid.png. Raises OutputError."""
    images = {model.name: model.images for model in models}
    ssim = {model.name: model.ssim for model in models if model.ssim}
    results["gallery"] = gallery(images, ssim, asked, protocol)
    columns = range(min(_NUM_COLUMNS, protocol.num_images))
    save_grid({name: own.take(columns) for name, own in images.items()}, _NUM_COLUMNS,
              out / "grid.png")  # fmt: skip
    with write_beside(out / "results.json") as part:
        text = json.dumps(results, indent=1, allow_nan=False)
        part.write_text(text + "\n", encoding="utf-8")
