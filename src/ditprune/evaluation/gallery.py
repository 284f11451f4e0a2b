"""Same-seed samples for the eye: the worst first, and a spread of the others."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from ditprune.evaluation.drawing import seed_of
from ditprune.evaluation.protocol import Protocol
from ditprune.evaluation.store import Images

_NUM_WORST, _NUM_OTHERS = 12, 12
_LARGEST = 256  # pixels
_SMALL = 64  # pixels; up to here a picture is kept exactly, as PNG
_QUALITY = 85


def choose(ssim: Mapping[str, Sequence[float]], num_images: int) -> list[int]:
    """Which images to show: the 12 worst (lowest SSIM over models), then 12 evenly over the rest.

    Ordered from worst to best.
    """
    lowest = [min((values[i] for values in ssim.values()), default=1.0) for i in range(num_images)]
    order = sorted(range(num_images), key=lambda i: (lowest[i], i))
    rest = order[_NUM_WORST:]
    num_others = min(_NUM_OTHERS, len(rest))
    others = [rest[(2 * k + 1) * len(rest) // (2 * num_others)] for k in range(num_others)]
    return order[:_NUM_WORST] + others


def gallery(
    images: Mapping[str, Images], ssim: Mapping[str, Sequence[float]], asked: Sequence[Any],
    protocol: Protocol,
) -> list[dict[str, Any]]:  # fmt: skip
    """The `gallery` of results.json: pictures as data URIs, at most 256 pixels wide or high."""
    chosen = choose(ssim, protocol.num_images)
    pictures = {name: [data_uri(one) for one in own.take(chosen)] for name, own in images.items()}
    return [
        {
            "index": index,
            "condition": asked[index],
            "seed": seed_of(protocol, index),
            "images": {name: uris[place] for name, uris in pictures.items()},
            "ssim": {name: values[index] for name, values in ssim.items()},
        }
        for place, index in enumerate(chosen)
    ]


def picture(image: Tensor) -> Image.Image:
    """uint8 [C, H, W] with one colour or three as a PIL image."""
    pixels = np.ascontiguousarray(image.permute(1, 2, 0).numpy())
    return Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)


def data_uri(image: Tensor) -> str:
    """uint8 [C, H, W] as a PNG where it is small, else as a WebP of at most 256 pixels."""
    shown, buffer = picture(image), io.BytesIO()
    kind = "png" if max(shown.size) <= _SMALL else "webp"
    if kind == "png":
        shown.save(buffer, format="PNG", optimize=True)
    else:
        shown.thumbnail((_LARGEST, _LARGEST), Image.Resampling.LANCZOS)
        shown.save(buffer, format="WEBP", quality=_QUALITY)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
