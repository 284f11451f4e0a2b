"""One picture: a row per model, a column per seed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ditprune.evaluation.gallery import picture
from ditprune.writing.files import write_beside

_TILE = 96
_GAP = 4
_CAPTION = 190
_PAPER, _INK = (255, 255, 255), (20, 20, 20)


def save_grid(images: Mapping[str, Tensor], num_columns: int, file: Path) -> None:
    """Write a PNG of every model's first images, uint8 [N, C, H, W], one seed a column."""
    num_columns = min(num_columns, *(len(batch) for batch in images.values()))
    width = _CAPTION + num_columns * (_TILE + _GAP) + _GAP
    height = len(images) * (_TILE + _GAP) + _GAP
    sheet = Image.new("RGB", (width, height), _PAPER)
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=18)
    for row, (name, batch) in enumerate(images.items()):
        top = _GAP + row * (_TILE + _GAP)
        pen.text((_GAP * 2, top + _TILE // 2), name, fill=_INK, font=font, anchor="lm")
        for column in range(num_columns):
            shown = picture(batch[column]).convert("RGB")
            tile = shown.resize((_TILE, _TILE), Image.Resampling.LANCZOS)
            sheet.paste(tile, (_CAPTION + column * (_TILE + _GAP), top))
    with write_beside(file) as part:
        sheet.save(part, format="PNG")
