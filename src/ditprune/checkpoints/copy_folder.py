"""Copies a model folder while some of its tensors change, in one sequential pass.

A shard's header is copied as it is and its tensors follow at the same offsets, so layout, names,
dtypes and every untouched byte stay what they were.
"""

from __future__ import annotations

import filecmp
import hashlib
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from ditprune.checkpoints import manifest
from ditprune.checkpoints.layout import Layout, layout_of
from ditprune.checkpoints.locate import ModelFolder, check_inside
from ditprune.checkpoints.weights import PICKLES, Entry, Weights
from ditprune.errors import ModelError
from ditprune.writing.identity import config_hash
from ditprune.writing.output import CARD_PICTURE

_WEIGHTS = (".safetensors", *PICKLES)


def other_files(model: ModelFolder, weights: Mapping[str, Weights]) -> Iterator[Path]:
    """All files of the model but the denoisers' weights: pipeline parts, configs, the card.

    Of a denoiser's own folder only the config, the index and the card are taken: other weights
    there, or at the root of a pipeline, would be dense copies under the pruned model's name.

    Raises ModelError for a link out of the model, whose file nobody meant to hand on, and for a
    link to a folder, whose files would be missing from the copy.
    """
    indices = {one.index for one in weights.values()}
    folders = tuple(model.denoisers.values())
    for file in sorted(model.root.rglob("*")):
        relative = file.relative_to(model.root)
        if any(part.startswith(".") for part in relative.parts):
            continue
        if file.is_symlink() and file.is_dir():
            raise ModelError(f"{file}: is a link to a folder; copy the folder in")
        if not file.is_file():
            continue
        if any(file.is_relative_to(folder) for folder in folders):
            is_copied = file.parent in folders and (file in indices or _is_card(file))
        else:
            is_copied = file.parent != model.root or file.suffix not in _WEIGHTS
        if is_copied:
            check_inside(file, model.root)
            yield file


def _is_card(file: Path) -> bool:
    return file.name == "config.json" or file.name.startswith(("README", "LICENSE"))


def _is_told(file: Path) -> bool:
    """Whether a file only tells of the model."""
    return file.name.startswith("README") or file.name == CARD_PICTURE


def header_hashes(weights: Weights) -> dict[str, str]:
    """The sha256 of each shard's header: names, dtypes, shapes and places of its tensors."""
    return {shard.name: sha256(weights.header(shard)) for shard in weights.shards}


def copied_bytes(model: ModelFolder, weights: Mapping[str, Weights]) -> int:
    """The size of the copy."""
    others = sum(file.stat().st_size for file in other_files(model, weights))
    return others + sum(one.size_bytes for one in weights.values())


def stamp(model: ModelFolder, weights: Mapping[str, Weights]) -> str:
    """A hash of the names, sizes and times of all files that a model's calls depend on.

    Its cards are none of them: an evaluation writes them anew.
    """
    digest = hashlib.sha256()
    shards = [shard for one in weights.values() for shard in one.shards]
    others = (file for file in other_files(model, weights) if not _is_told(file))
    for file in (*others, *shards):
        state = file.stat()
        place = file.relative_to(model.root).as_posix()
        digest.update(f"{place} {state.st_size} {state.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def copy_identity(
    model: ModelFolder, weights: Mapping[str, Weights], settings: Mapping[str, Any]
) -> dict[str, Any]:
    """What must be the same for a run to continue the copy that a killed run began."""
    return {
        "versions": manifest.versions(),
        **settings,
        "files": stamp(model, weights),
        "json": config_hash(model.root),
    }


def copy_other_files(model: ModelFolder, weights: Mapping[str, Weights], destination: Path) -> None:
    """Copy them under `destination`, at the same relative paths; what is there already stays."""
    for source in other_files(model, weights):
        target = destination / source.relative_to(model.root)
        target.parent.mkdir(parents=True, exist_ok=True)
        if not (target.is_file() and filecmp.cmp(source, target, shallow=False)):
            shutil.copyfile(source, target)


class ShardWriter:
    """Writes shards with the headers of the originals, or of a layout, tensors in any order.

    Shards that are there already keep the tensors that lie in them.
    """

    def __init__(self, weights: Weights | Layout, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._streams: dict[str, BinaryIO] = {}
        layout = weights if isinstance(weights, Layout) else layout_of(weights)
        for shard, header in layout.headers.items():
            target = folder / shard
            target.touch()
            with target.open("r+b") as stream:
                stream.write(header)
                stream.truncate(layout.size_bytes_of(shard))

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, *_: object) -> None:
        for stream in self._streams.values():
            stream.close()

    def write(self, entry: Entry, raw: bytes | memoryview) -> None:
        """Put one tensor's bytes at its place; a kill later does not undo it."""
        name = entry.file.name
        if name not in self._streams:
            self._streams[name] = (self._folder / name).open("r+b", buffering=0)
        stream = self._streams[name]
        stream.seek(entry.offset)
        rest = memoryview(raw)
        while rest.nbytes:
            rest = rest[stream.write(rest) :]

    def sync(self) -> None:
        """Bring to the disk what was written; a power cut later does not undo it."""
        for stream in list(self._streams.values()):
            os.fsync(stream.fileno())


def sha256(raw: bytes | bytearray | memoryview) -> str:
    """The hash of some bytes, in hex."""
    return hashlib.sha256(raw).hexdigest()
