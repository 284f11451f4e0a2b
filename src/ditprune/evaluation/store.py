"""Drawn images on the disk: a batch is there whole or not at all, and no model's are in memory."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ditprune.calibration.sample import identity_of
from ditprune.checkpoints.locate import ModelFolder
from ditprune.denoiser.placement import Placement
from ditprune.evaluation.protocol import Protocol
from ditprune.evaluation.timing import Batch, Load, Timing, timing_of
from ditprune.writing import tensors_file
from ditprune.writing.files import ensure_folder

FOLDER = ".images"
_DIGITS = 24
# How many samples there are is no part of one; what is drawn stands in the key as it comes out.
_NOT_OF_A_SAMPLE = {"num_images", "num_held_out", "labels", "prompts"}


def key_of(
    dense: ModelFolder, pruned: ModelFolder | None, protocol: Protocol, place: Placement,
    drawn: Sequence[Any],
) -> str:  # fmt: skip
    """A name for the images of a model: another weight, file, option or version, another name.

    Args:
        drawn: the conditions that images draw in turn (`calibration.draw.in_turn`). Where images
            are fewer than all, these differ with their number, and so does the name.
    """
    options = {k: v for k, v in asdict(protocol).items() if k not in _NOT_OF_A_SAMPLE}
    sampling = protocol.held_out()
    guard = {
        "options": options,
        "conditions": list(drawn),
        "dense": {k: v for k, v in identity_of(dense, sampling, place).items() if k != "sampling"},
    }
    if pruned is not None:
        own = identity_of(pruned, sampling, place)
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

    def write(
        self, items: range, images: Tensor, seconds: float, num_spoiled: int = 0,
        num_processes: int = 1,
    ) -> None:  # fmt: skip
        """Keep a batch: how long it took under what load, and how many of it were not finite.

        Raises OutputError.
        """
        ensure_folder(self.folder)
        words = {
            "seconds": repr(seconds), "num_spoiled": str(num_spoiled),
            **Load.now(num_processes).words(),
        }  # fmt: skip
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

    def timing(self) -> Timing:
        """How long an image took, and under what load."""
        batches = []
        for items in self.ranges:
            words = tensors_file.words(self._file(items))
            batches.append(Batch(len(items), float(words["seconds"]), Load.of_words(words)))
        return timing_of(batches, self.batch_size)

    def num_spoiled(self) -> int:
        """Images that were not finite where they were drawn."""
        words = (tensors_file.words(self._file(items)) for items in self.ranges)
        return sum(int(own.get("num_spoiled", 0)) for own in words)

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def _file(self, items: range) -> Path:
        return self.folder / f"{items.start:07d}-{items.stop:07d}.safetensors"
