"""Drawn images on the disk: a batch is there whole or not at all, and no model's are in memory."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import torch
from torch import Tensor

from ditprune.calibration.collect import guard_of
from ditprune.calibration.placement import Placement
from ditprune.checkpoints import tensors_file
from ditprune.checkpoints.locate import ModelFolder
from ditprune.checkpoints.output import ensure_folder
from ditprune.evaluation.protocol import Protocol

FOLDER = ".images"
_DIGITS = 24
# What a sample depends on; how many there are is no part of it.
_NOT_OF_A_SAMPLE = {"num_images", "num_held_out"}


def key_of(
    dense: ModelFolder, pruned: ModelFolder | None, protocol: Protocol, place: Placement
) -> str:
    """A name for the images of a model: another weight, file, option or version, another name."""
    options = {k: v for k, v in asdict(protocol).items() if k not in _NOT_OF_A_SAMPLE}
    sampling = protocol.held_out()
    guard = {
        "options": options,
        "dense": {k: v for k, v in guard_of(dense, sampling, place).items() if k != "sampling"},
    }
    if pruned is not None:
        own = guard_of(pruned, sampling, place)
        guard["pruned"] = {key: own[key] for key in ("weights", "files", "configuration")}
    text = json.dumps(guard, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:_DIGITS]


@dataclass(frozen=True)
class Images:
    """The images of one model, uint8 [N, C, H, W], some of them not drawn yet.

    Args:
        folder: with a file for each batch.
        num_images, batch_size: a batch is `batch_size` images, the last one what is left.
    """

    folder: Path
    num_images: int
    batch_size: int

    @property
    def ranges(self) -> list[range]:
        """The images of each batch."""
        return [
            range(first, min(first + self.batch_size, self.num_images))
            for first in range(0, self.num_images, self.batch_size)
        ]

    def has(self, items: range) -> bool:
        return self._file(items).is_file()

    def write(self, items: range, images: Tensor, seconds: float, num_spoiled: int = 0) -> None:
        """Keep a batch, how long it took, how many of it were not finite. Raises OutputError."""
        ensure_folder(self.folder)
        words = {"seconds": repr(seconds), "num_spoiled": str(num_spoiled)}
        tensors_file.save({"images": images}, words, self._file(items))

    def read(self, items: range) -> Tensor:
        """A batch. Raises ModelError where its file is not whole."""
        return tensors_file.load(self._file(items))[0]["images"]

    def batches(self) -> Iterator[tuple[range, Tensor]]:
        """Every batch in turn, with which images it holds."""
        for items in self.ranges:
            yield items, self.read(items)

    def take(self, wanted: Sequence[int]) -> Tensor:
        """These images, in this order."""
        found: dict[int, Tensor] = {}
        for items in self.ranges:
            inside = [i for i in wanted if i in items]
            if inside:
                batch = self.read(items)
                found |= {i: batch[i - items.start].clone() for i in inside}
        return torch.stack([found[i] for i in wanted])

    def seconds_per_image(self) -> float | None:
        """The median over full batches, the first left out where there are others: it warms up."""
        times = []
        for items in self.ranges:
            words = tensors_file.words(self._file(items))
            times.append((len(items), float(words["seconds"]) / len(items)))
        full = [time for count, time in times if count == self.batch_size] or [t for _, t in times]
        return median(full[1:] or full)

    def num_spoiled(self) -> int:
        """Images that were not finite where they were drawn."""
        words = (tensors_file.words(self._file(items)) for items in self.ranges)
        return sum(int(own.get("num_spoiled", 0)) for own in words)

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def _file(self, items: range) -> Path:
        return self.folder / f"{items.start:07d}-{items.stop:07d}.safetensors"
