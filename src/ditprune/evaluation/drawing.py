"""Draws the same (condition, seed) pairs with any model, in any batches, by any process."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor

from ditprune.calibration.draw import draw, item_seed
from ditprune.calibration.workers import Worker
from ditprune.checkpoints.locate import ModelFolder
from ditprune.denoiser.pipeline import check_components
from ditprune.errors import RecipeError
from ditprune.evaluation.protocol import Protocol
from ditprune.evaluation.store import Images
from ditprune.progress import Progress, silent


def check_draws_images(model: ModelFolder) -> None:
    """Refuse a pipeline of videos or sound before anything of it is loaded.

    A module of diffusers' holds the class of what its pipeline returns, with a field `images`
    where it draws some. Raises RecipeError; ModelError for what is no pipeline of diffusers'.
    """
    import diffusers

    name, _ = check_components(model)
    held = vars(sys.modules[getattr(diffusers, name).__module__]).values()
    outputs = [one for one in held if isinstance(one, type) and is_dataclass(one)
               and one.__name__.endswith("PipelineOutput")]  # fmt: skip
    drawn = sorted({field.name for output in outputs for field in fields(output)})
    if drawn and "images" not in drawn:
        raise RecipeError(
            f"{model.name}: {name} draws {', '.join(drawn)}, expected images to compare; "
            "calibrate, prune, bench and the studies 'statistics' and 'importance' take it"
        )


def seed_of(protocol: Protocol, item: int) -> int:
    """The seed of image i's noise."""
    return item_seed("evaluation", protocol.seed, item)


def draw_batch(
    pipeline: Any, asked: Sequence[Any], protocol: Protocol, items: range
) -> tuple[Tensor, int]:
    """uint8 [n, C, H, W], what a viewer would see of these items: black where it is NaN.

    And how many of them hold a pixel that is NaN or Inf.
    """
    batch = draw(
        pipeline,
        [asked[i] for i in items],
        [seed_of(protocol, i) for i in items],
        **protocol.held_out().run_options(),
    )
    pixels = torch.from_numpy(batch).permute(0, 3, 1, 2)
    num_spoiled = int((~pixels.isfinite()).flatten(1).any(1).sum())
    return (pixels.nan_to_num() * 255).round().clamp(0, 255).to(torch.uint8), num_spoiled


def draw_missing(
    pipeline: Any, asked: Sequence[Any], protocol: Protocol, images: Images, name: str,
    progress: Progress = silent, worker: Worker | None = None,
) -> None:  # fmt: skip
    """Draw the batches that are not there yet; workers take them in turn, and wait for all."""
    worker = worker or Worker()
    ranges = images.ranges
    missing = [items for items in ranges if not images.has(items)]
    worker.wait()  # everybody has looked before anybody writes
    for number, items in enumerate(missing):
        if worker.owns(number):
            begun = time.monotonic()
            batch, num_spoiled = draw_batch(pipeline, asked, protocol, items)
            images.write(items, batch, time.monotonic() - begun, num_spoiled, worker.world)
            progress(f"images: {name}", items.stop, images.num_images)
    worker.wait()


def draw_images(
    pipeline: Any, asked: Sequence[Any], protocol: Protocol, name: str,
    progress: Progress = silent, worker: Worker | None = None,
) -> Tensor:  # fmt: skip
    """All images at once, uint8 [N, C, H, W], kept nowhere; workers draw batches in turn."""
    worker = worker or Worker()
    starts = range(0, len(asked), protocol.batch_size)
    batches = {}
    for number, first in enumerate(starts):
        if worker.owns(number):
            items = range(first, min(first + protocol.batch_size, len(asked)))
            batches[number], _ = draw_batch(pipeline, asked, protocol, items)
            progress(f"images: {name}", items.stop, len(asked))
    everyone: dict[int, Tensor] = {}
    for some in worker.gather(batches):
        everyone |= some
    return torch.cat([everyone[number] for number in range(len(starts))])


def as_unit(images: Tensor) -> Tensor:
    """uint8 images as values in [0, 1]."""
    return images.float() / 255
