"""How well does the judge of the test beds read scenes, clean and spoilt?

python bench/judging.py [pictures]
"""

from __future__ import annotations

import io
import sys
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

sys.path.insert(0, str(Path(__file__).parents[1]))

from testbeds.judge import SCORES, judge, read
from testbeds.scenes import Scene, captions, render, scene

FIRST_INDEX = 500_000  # models, tests and the judge's training use other scenes


def blurred(images: NDArray[np.uint8], width: float) -> NDArray[np.uint8]:
    return ndimage.gaussian_filter(images.astype(float), (0, width, width, 0)).astype(np.uint8)


def noisy(images: NDArray[np.uint8], strength: float) -> NDArray[np.uint8]:
    noise = np.random.default_rng(0).normal(0, strength, images.shape)
    return (images + noise).round().clip(0, 255).astype(np.uint8)


def as_jpeg(images: NDArray[np.uint8], quality: int) -> NDArray[np.uint8]:
    def through(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        file = io.BytesIO()
        Image.fromarray(image).save(file, "JPEG", quality=quality)
        return np.asarray(Image.open(file))

    return np.stack([through(image) for image in images])


def shapes_read(scenes: list[Scene], images: NDArray[np.uint8]) -> float:
    """Give the share of scenes' objects whose shape is read, where as many are found."""
    right = total = 0
    for one, found in zip(scenes, read(images), strict=True):
        drawn = sorted(g.shape for g in one.groups for _ in range(g.count))
        if len(drawn) == len(found):
            shapes = sorted(object_.shape for object_ in found)
            right += sum(a == b for a, b in zip(drawn, shapes, strict=True))
            total += len(drawn)
    return right / total


def main() -> None:
    number = int(sys.argv[1]) if len(sys.argv) > 1 else 2000
    indices = range(FIRST_INDEX, FIRST_INDEX + number)
    scenes = [scene(index, "held_out") for index in indices]
    images = render(scenes, indices).movedim(1, -1).numpy()
    texts = [captions(one)[0] for one in scenes]
    print(f"{number} held-out scenes; share of shapes read: {shapes_read(scenes, images):.4f}")
    print(f"{'':24}" + "".join(f"{name:>10}" for name in SCORES))
    spoilt = {
        "clean": images,
        "blur σ = 0.7": blurred(images, 0.7),
        "noise σ = 4/255": noisy(images, 4),
        "noise σ = 10/255": noisy(images, 10),
        "JPEG, quality 75": as_jpeg(images, 75),
        "JPEG, quality 40": as_jpeg(images, 40),
        "blur, noise and JPEG 75": as_jpeg(noisy(blurred(images, 0.7), 4), 75),
    }
    for name, pictures in spoilt.items():
        scores = judge(pictures, texts)
        print(f"{name:24}" + "".join(f"{np.nanmean(scores[s]):10.4f}" for s in SCORES))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
