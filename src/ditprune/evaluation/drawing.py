"""How are the same (condition, seed) pairs drawn with any model, and where are the images kept?

A batch is one file, written whole or not at all, so any process can draw any batch, a stopped run
goes on, and no model's images have to be in memory. The file also says how long the batch took,
and under which load.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from ditprune.calibration.draw import draw, item_seed
from ditprune.calibration.sample import Sampling, calibration_identity
from ditprune.calibration.workers import Worker
from ditprune.denoiser.components import check_components
from ditprune.denoiser.placement import Placement
from ditprune.errors import RecipeError
from ditprune.evaluation.in_memory import AnyModel, ModelInMemory
from ditprune.evaluation.peak import peak_bytes, reset_peak
from ditprune.evaluation.protocol import Protocol
from ditprune.progress import Progress, silent
from ditprune.writing.files import ensure_folder
from ditprune.writing.tensors_file import load_tensors, read_metadata, save_tensors

IMAGES_FOLDER = ".images"
DRAWN = ("images", "frames")  # what metrics look at
_DIGITS = 24
# How many samples there are does not change a sample; the conditions stand in the key themselves.
_NOT_OF_A_SAMPLE = {"num_images", "num_held_out", "labels", "prompts"}


def load_now(num_processes: int = 1) -> dict[str, str]:
    """What runs while a batch is drawn, for the metadata of its file.

    Args:
        num_processes: processes that draw at the same time, each its own batches.
    """
    machine = [platform.machine(), torch.backends.cpu.get_cpu_capability()]
    machine += [torch.cuda.get_device_name()] if torch.cuda.is_available() else []
    return {
        "num_processes": str(num_processes),
        "num_threads": str(torch.get_num_threads()),
        "machine": f"{' '.join(machine)}, CPUs: {os.cpu_count()}",
    }


@dataclass(frozen=True)
class Timing:
    """How long the images of one model took.

    Args:
        seconds_per_image: the median over full batches, without the first, which warms up; None
            where nothing was drawn.
        loads: the different loads under which batches were drawn, as text.
        peak_memory_bytes: the most that a batch took; None where it was not watched.
    """

    seconds_per_image: float | None
    loads: tuple[str, ...]
    peak_memory_bytes: int | None = None


@dataclass(frozen=True)
class Images:
    """The images of one model on disk, uint8 [N, C, H, W], or its videos, [N, F, C, H, W].

    Some may not be drawn yet.

    Args:
        folder: holds a file for each batch.
        num_images, batch_size: a batch has `batch_size` images; the last one has the rest.
    """

    folder: Path
    num_images: int
    batch_size: int

    @property
    def ranges(self) -> list[range]:
        """The numbers of the images in each batch."""
        return [
            range(first, min(first + self.batch_size, self.num_images))
            for first in range(0, self.num_images, self.batch_size)
        ]

    def has(self, items: range) -> bool:
        return self._file(items).is_file()

    def write(
        self, items: range, images: Tensor, seconds: float, num_spoiled: int = 0,
        num_processes: int = 1, peak: int | None = None,
    ) -> None:  # fmt: skip
        """Write a batch, with the seconds and the memory it took, the load, and how many images
        are not finite.

        Raises OutputError.
        """
        ensure_folder(self.folder)
        words = {"seconds": repr(seconds), "num_spoiled": str(num_spoiled)}
        words |= {} if peak is None else {"peak_memory_bytes": str(peak)}
        save_tensors({"images": images}, words | load_now(num_processes), self._file(items))

    def read(self, items: range) -> UInt8[Tensor, "n c h w"]:
        """A batch; of videos the middle frames. Raises ModelError if its file is damaged."""
        frames = self.read_frames(items)
        return frames[:, frames.shape[1] // 2]

    def read_frames(self, items: range) -> UInt8[Tensor, "n f c h w"]:
        """All frames of a batch; an image has one. Raises ModelError if its file is damaged."""
        drawn = load_tensors(self._file(items))[0]["images"]
        return drawn if drawn.ndim == 5 else drawn[:, None]

    def take(self, wanted: Sequence[int]) -> UInt8[Tensor, "n c h w"]:
        """These images, in this order."""
        images: dict[int, Tensor] = {}
        for items in self.ranges:
            inside = [i for i in wanted if i in items]
            if inside:
                batch = self.read(items)
                images |= {i: batch[i - items.start].clone() for i in inside}
        return torch.stack([images[i] for i in wanted])

    def timing(self) -> Timing:
        """How long an image took, and under which load."""
        words = self._words()
        num_images = min(self.batch_size, self.num_images)  # in a full batch
        if not words:
            return Timing(None, ())
        full = [items for items in self.ranges if len(items) == num_images]
        times = [float(words[items]["seconds"]) / num_images for items in full]
        load = "processes: {num_processes}, threads: {num_threads} ({machine})"
        loads = dict.fromkeys(load.format_map(each) for each in words.values())
        peaks = [batch.get("peak_memory_bytes") for batch in words.values()]
        peak = None if None in peaks else max(map(int, filter(None, peaks)))
        return Timing(median(times[1:] or times), tuple(loads), peak)

    def num_spoiled(self) -> int:
        """How many images were not finite when they were drawn."""
        return sum(int(words.get("num_spoiled", 0)) for words in self._words().values())

    def _words(self) -> dict[range, dict[str, str]]:
        return {items: read_metadata(self._file(items)) for items in self.ranges}

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def _file(self, items: range) -> Path:
        return self.folder / f"{items.start:07d}-{items.stop:07d}.safetensors"


def images_key(
    dense: AnyModel, pruned: AnyModel | None, protocol: Protocol, placement: Placement,
    drawn: Sequence[Any],
) -> str:  # fmt: skip
    """The folder name for the images of a model: a hash of weights, files, options and versions.

    Args:
        drawn: the conditions that images draw in turn (`calibration.draw.in_turn`). If there are
            fewer images than conditions, they depend on the number of images, and so does the name.
    """
    sampling = protocol.held_out()
    identity = {
        "options": {k: v for k, v in asdict(protocol).items() if k not in _NOT_OF_A_SAMPLE},
        "conditions": list(drawn),
        "dense": _identity(dense, sampling, placement),
    }
    if pruned is not None:
        whole = _identity(pruned, sampling, placement)
        of_model = ("weights", "files", "configuration", "denoisers")
        identity["pruned"] = {key: whole[key] for key in of_model if key in whole}
    text = json.dumps(identity, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:_DIGITS]


def _identity(model: AnyModel, sampling: Sampling, placement: Placement) -> dict[str, Any]:
    """What tells the images of one model from those of another."""
    if isinstance(model, ModelInMemory):
        return model.identity
    identity = calibration_identity(model, sampling, placement)
    return {key: value for key, value in identity.items() if key != "sampling"}


def drawn_by(model: AnyModel) -> str:
    """`images`, `frames`, or what else a pipeline draws, before any of it is loaded.

    The module of a diffusers pipeline also holds the class of its output, which names it.

    Raises ModelError if the folder is no diffusers pipeline.
    """
    import diffusers

    if isinstance(model, ModelInMemory):
        pipeline = _of_diffusers(type(model.pipeline))
    else:
        pipeline = getattr(diffusers, check_components(model)[0])
    members = vars(sys.modules[pipeline.__module__]).values()
    outputs = [member for member in members if isinstance(member, type) and is_dataclass(member)
               and member.__name__.endswith("PipelineOutput")]  # fmt: skip
    names = sorted({field.name for output in outputs for field in fields(output)})
    return next((name for name in DRAWN if name in names), ", ".join(names) or "images")


def check_draws_images(model: AnyModel) -> None:
    """Refuse a pipeline of videos or sound before any of it is loaded.

    Raises RecipeError; ModelError if the folder is no diffusers pipeline.
    """
    drawn = drawn_by(model)
    if drawn != "images":
        raise RecipeError(
            f"{model.name}: draws {drawn}, expected images to compare; evaluate, calibrate, prune, "
            "bench and the studies 'statistics' and 'importance' take it"
        )


def _of_diffusers(pipeline: type) -> type:
    """The nearest class of diffusers, since a pipeline may be a class of its own over one."""
    return next(c for c in pipeline.__mro__ if c.__module__.startswith("diffusers."))


def image_seed(protocol: Protocol, item: int) -> int:
    """The seed of the noise of image i."""
    return item_seed("evaluation", protocol.seed, item)


def draw_batch(
    pipeline: Any, asked: Sequence[Any], protocol: Protocol, items: range
) -> tuple[UInt8[Tensor, "n *f c h w"], int]:
    """Draw these images or videos, and count those with NaN or Inf; NaN becomes black.

    Args:
        asked: the condition of every image.
    """
    batch = draw(
        pipeline,
        [asked[i] for i in items],
        [image_seed(protocol, i) for i in items],
        **protocol.held_out().run_options(),
    )
    pixels = torch.from_numpy(batch).movedim(-1, -3)
    num_spoiled = int((~pixels.isfinite()).flatten(1).any(1).sum())
    return (pixels.nan_to_num() * 255).round().clamp(0, 255).to(torch.uint8), num_spoiled


def draw_missing(
    pipeline: Any, asked: Sequence[Any], protocol: Protocol, images: Images, name: str,
    progress: Progress = silent, worker: Worker | None = None, watches: bool = True,
) -> None:  # fmt: skip
    """Draw the batches that are not on disk; workers take them in turn and wait for each other.

    Args:
        watches: whether the memory is watched: that of this model, if no other is in it.
    """
    worker = worker or Worker()
    missing = [items for items in images.ranges if not images.has(items)]
    worker.wait()  # every worker has looked before one of them writes
    for number, items in enumerate(missing):
        if worker.owns(number):
            reset_peak(pipeline.device)
            start_s = time.monotonic()
            batch, num_spoiled = draw_batch(pipeline, asked, protocol, items)
            seconds = time.monotonic() - start_s
            peak = peak_bytes(pipeline.device) if watches else None
            images.write(items, batch, seconds, num_spoiled, worker.world, peak)
            progress(f"images: {name}", items.stop, images.num_images)
    worker.wait()


def as_unit(images: UInt8[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
    """Images with values in [0, 1]."""
    return images.float() / 255
