"""Which pictures does a reader see? A gallery for the page, worst first, and a grid."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ditprune.evaluation.drawing import Images, image_seed
from ditprune.evaluation.protocol import Protocol
from ditprune.writing.files import write_beside

_NUM_WORST, _NUM_OTHERS = 12, 12
_LARGEST = 256  # pixels
_SMALL = 64  # pixels; up to here a picture is stored exactly, as PNG
_QUALITY = 85
# The grid, in pixels.
_TILE, _GAP, _CAPTION = 96, 4, 190
_PAPER, _INK = (255, 255, 255), (20, 20, 20)


def choose_images(ssim: Mapping[str, Sequence[float]], num_images: int) -> list[int]:
    """The 12 worst images (lowest SSIM of any model), then 12 spread evenly over the rest.

    Ordered from worst to best.
    """
    lowest = [min((values[i] for values in ssim.values()), default=1.0) for i in range(num_images)]
    order = sorted(range(num_images), key=lambda i: (lowest[i], i))
    rest = order[_NUM_WORST:]
    num_others = min(_NUM_OTHERS, len(rest))
    others = [rest[(2 * k + 1) * len(rest) // (2 * num_others)] for k in range(num_others)]
    return order[:_NUM_WORST] + others


def gallery_entries(
    images: Mapping[str, Images], ssim: Mapping[str, Sequence[float]], asked: Sequence[Any],
    protocol: Protocol,
) -> list[dict[str, Any]]:  # fmt: skip
    """The `gallery` of results.json, with pictures as data URIs of at most 256 × 256 pixels."""
    chosen = choose_images(ssim, protocol.num_images)
    pictures = {name: map(data_uri, stored.take(chosen)) for name, stored in images.items()}
    return [
        {
            "index": index,
            "condition": asked[index],
            "seed": image_seed(protocol, index),
            "images": {name: next(uris) for name, uris in pictures.items()},
            "ssim": {name: values[index] for name, values in ssim.items()},
        }
        for index in chosen
    ]


def to_picture(image: Tensor) -> Image.Image:
    """uint8 [C, H, W] with one colour or three as a PIL image."""
    pixels = np.ascontiguousarray(image.permute(1, 2, 0).numpy())
    return Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)


def data_uri(image: Tensor) -> str:
    """uint8 [C, H, W] as a PNG if it is small, else as a WebP of at most 256 pixels."""
    picture, buffer = to_picture(image), io.BytesIO()
    kind = "png" if max(picture.size) <= _SMALL else "webp"
    if kind == "png":
        picture.save(buffer, format="PNG", optimize=True)
    else:
        picture.thumbnail((_LARGEST, _LARGEST), Image.Resampling.LANCZOS)
        picture.save(buffer, format="WEBP", quality=_QUALITY)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def save_grid(images: Mapping[str, Tensor], file: Path) -> None:
    """Write a PNG with a row for each model, uint8 [N, C, H, W], and a column for each seed."""
    num_columns = min(len(batch) for batch in images.values())
    width = _CAPTION + num_columns * (_TILE + _GAP) + _GAP
    height = len(images) * (_TILE + _GAP) + _GAP
    sheet = Image.new("RGB", (width, height), _PAPER)
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=18)
    for row, (name, batch) in enumerate(images.items()):
        top = _GAP + row * (_TILE + _GAP)
        pen.text((_GAP * 2, top + _TILE // 2), name, fill=_INK, font=font, anchor="lm")
        for column in range(num_columns):
            picture = to_picture(batch[column]).convert("RGB")
            tile = picture.resize((_TILE, _TILE), Image.Resampling.LANCZOS)
            sheet.paste(tile, (_CAPTION + column * (_TILE + _GAP), top))
    with write_beside(file) as part:
        sheet.save(part, format="PNG")
