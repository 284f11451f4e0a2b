"""Against which images FID and its like are taken: real ones where there are some."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from ditprune.errors import RecipeError
from ditprune.evaluation.catalogue import AGAINST_IMAGES
from ditprune.evaluation.extractors import Extractor
from ditprune.evaluation.metrics import frechet
from ditprune.evaluation.metrics.features import Seen

BUNDLED = "FID: the 10,000 MNIST test images, by their features' moments"
_DENSE = "the dense model's images"
_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}
_BATCH = 50


@dataclass(frozen=True)
class Reference:
    """Args:
    text: for `protocol.reference`; None where no image is real.
    against: `real` or `dense`, for each metric that is taken against images.
    pooled_moments: for FID; None is those of the dense model's images.
    seen: the features of real images; None is those of the dense model's.
    """

    text: str | None
    against: Mapping[str, str]
    pooled_moments: Mapping[str, Tensor] | None = None
    seen: Seen | None = None


def reference_for(folder: Path | None, extractor: Extractor | None, like: Tensor) -> Reference:
    """The best reference there is for images like these [n, C, H, W].

    Raises RecipeError for a folder without images, or with one that cannot be read.
    """
    dense = dict.fromkeys(AGAINST_IMAGES, "dense")
    if extractor is None:
        return Reference(None, dense)
    if folder is not None:
        seen, count = _see_folder(folder, extractor, like)
        text = f"{count:,} images of {folder.resolve().name}, cropped and scaled to the samples"
        moments = frechet.moments_of(seen.all_pooled())
        return Reference(text, dict.fromkeys(AGAINST_IMAGES, "real"), moments, seen)
    if extractor.real is not None:
        text = f"{BUNDLED}; sFID, KID, precision and recall: {_DENSE}"
        return Reference(text, dense | {"fid": "real"}, extractor.real)
    return Reference(None, dense)


def _see_folder(folder: Path, extractor: Extractor, like: Tensor) -> tuple[Seen, int]:
    files = sorted(f for f in folder.rglob("*") if f.suffix.lower() in _SUFFIXES and f.is_file())
    if len(files) < 2:
        raise RecipeError(
            f"--reference {folder}: holds {len(files)} images, expected 2 or more "
            f"({', '.join(sorted(_SUFFIXES))})"
        )
    seen = Seen()
    for first in range(0, len(files), _BATCH):
        batch = [read_picture(file, like) for file in files[first : first + _BATCH]]
        seen = extractor.see_all(torch.stack(batch), seen)
    return seen, len(files)


def read_picture(file: Path, like: Tensor) -> Tensor:
    """An image file as uint8 [C, H, W] of the samples' colours and size, cropped in the middle.

    Raises RecipeError.
    """
    num_colours, height, width = like.shape[1:]
    try:
        with Image.open(file) as opened:
            picture = opened.convert("L" if num_colours == 1 else "RGB")
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError, ValueError) as error:
        raise RecipeError(f"--reference: {file} cannot be read as an image ({error})") from None
    fitted = ImageOps.fit(picture, (width, height), Image.Resampling.BICUBIC)
    pixels = torch.from_numpy(np.array(fitted))
    return pixels[None] if num_colours == 1 else pixels.permute(2, 0, 1)
