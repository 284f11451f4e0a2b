"""The worst same-seed samples as one picture, for pages that show files only."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from ditprune.reporting.load import DENSE
from ditprune.writing.output import write_beside

_TILE, _GAP, _MOST = 128, 4, 8


def write_samples(results: Mapping[str, Any], name: str, file: Path) -> bool:
    """Write a PNG: dense above, the model below, one seed a column, its worst first.

    Returns whether there is a sample to show. Raises OutputError.
    """
    samples = [one for one in results["gallery"] if {DENSE, name} <= one["images"].keys()]
    samples.sort(key=lambda one: one["ssim"].get(name) or 0)
    if not samples:
        return False
    columns = samples[:_MOST]
    step = _TILE + _GAP
    sheet = Image.new("RGB", (len(columns) * step - _GAP, 2 * step - _GAP), "white")
    for column, sample in enumerate(columns):
        for row, model in enumerate((DENSE, name)):
            sheet.paste(_tile(sample["images"][model]), (column * step, row * step))
    with write_beside(file) as part:
        sheet.save(part, format="PNG")
    return True


def _tile(uri: str) -> Image.Image:
    """The image of a data URI in a square; small ones keep their pixels."""
    image = Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))).convert("RGB")
    scale = _TILE / max(image.size)
    size = tuple(max(1, round(side * scale)) for side in image.size)
    how = Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.LANCZOS
    tile = Image.new("RGB", (_TILE, _TILE), "white")
    tile.paste(image.resize((size[0], size[1]), how), ((_TILE - size[0]) // 2, 0))
    return tile
