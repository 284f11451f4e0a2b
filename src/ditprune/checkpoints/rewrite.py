"""Copies a model folder while some of its tensors change, in one sequential pass.

A shard's header is copied as it is and its tensors follow at the same offsets, so layout, names,
dtypes and every untouched byte stay what they were.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from ditprune.checkpoints.locate import ModelFolder
from ditprune.checkpoints.weights import PICKLES, Entry, Weights, read_range

_WEIGHTS = (".safetensors", *PICKLES)


def other_files(model: ModelFolder, weights: Weights) -> Iterator[Path]:
    """All files of the model but the denoiser's weights: pipeline parts, configs, the card.

    Of the denoiser's own folder only the config, the index and the card are taken: other weights
    there, or at the root of a pipeline, would be dense copies under the pruned model's name.
    """
    for file in sorted(model.root.rglob("*")):
        relative = file.relative_to(model.root)
        if not file.is_file() or any(part.startswith(".") for part in relative.parts):
            continue
        if file.is_relative_to(model.denoiser):
            if file.parent == model.denoiser and (file == weights.index or _is_card(file)):
                yield file
        elif file.parent != model.root or file.suffix not in _WEIGHTS:
            yield file


def _is_card(file: Path) -> bool:
    return file.name in ("config.json", "README.md") or file.name.startswith("LICENSE")


def header_hashes(weights: Weights) -> dict[str, str]:
    """The sha256 of each shard's header: names, dtypes, shapes and places of its tensors."""
    return {
        shard.name: sha256(read_range(shard, 0, _header_bytes(weights, shard)))
        for shard in weights.shards
    }


def _header_bytes(weights: Weights, shard: Path) -> int:
    entries = weights.in_shard(shard)
    return entries[0].offset if entries else shard.stat().st_size


def copied_bytes(model: ModelFolder, weights: Weights) -> int:
    """The size of the copy."""
    others = sum(file.stat().st_size for file in other_files(model, weights))
    return others + weights.size_bytes


def copy_other_files(model: ModelFolder, weights: Weights, destination: Path) -> None:
    """Copy them under `destination`, at the same relative paths."""
    for source in other_files(model, weights):
        target = destination / source.relative_to(model.root)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)


def tensors_of(weights: Weights) -> Iterator[tuple[Entry, bytearray]]:
    """Every tensor with its bytes, shard by shard, by offset."""
    for shard in weights.shards:
        for entry in weights.in_shard(shard):
            yield entry, read_range(shard, entry.offset, entry.size_bytes)


class ShardWriter:
    """Writes shards with the headers of the originals, tensor after tensor, one file open."""

    def __init__(self, weights: Weights, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._stream: BinaryIO | None = None
        for shard in weights.shards:
            with (folder / shard.name).open("wb") as stream:
                stream.write(read_range(shard, 0, _header_bytes(weights, shard)))
                stream.truncate(shard.stat().st_size)

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def write(self, entry: Entry, raw: bytes | bytearray) -> None:
        """Put one tensor's bytes at its place."""
        file = self._folder / entry.file.name
        if self._stream is None or self._stream.name != str(file):
            self._close()
            self._stream = file.open("r+b")
        self._stream.seek(entry.offset)
        self._stream.write(raw)

    def _close(self) -> None:
        if self._stream is not None:
            self._stream.flush()
            os.fsync(self._stream.fileno())
            self._stream.close()


def sha256(raw: bytes | bytearray | memoryview) -> str:
    """The hash of some bytes, in hex."""
    return hashlib.sha256(raw).hexdigest()
