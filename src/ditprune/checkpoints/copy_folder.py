"""Which other files has a model than its denoisers' weights? To copy them, and to see changes."""

from __future__ import annotations

import filecmp
import hashlib
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ditprune.checkpoints.locate import ModelFolder, check_inside
from ditprune.checkpoints.weights import PICKLES, Weights
from ditprune.errors import ModelError
from ditprune.writing.files import (
    CARD,
    CARD_PICTURE,
    COMPACT_MANIFEST,
    MANIFEST,
    installed_versions,
)

_WEIGHTS = (".safetensors", *PICKLES)


def other_files(model: ModelFolder, weights: Mapping[str, Weights]) -> Iterator[Path]:
    """All files of the model but the denoisers' weights: pipeline parts, configs, the card.

    Of a denoiser's own folder only the config, the index and the card are taken: other weights
    there, or at the root of a pipeline, would be dense copies under the pruned model's name.

    Raises ModelError for a link out of the model, whose file nobody meant to hand on, and for a
    link to a folder, whose files would be missing from the copy. Raises it for what would be taken
    for a file that we write into the copy at the end, too.
    """
    for name in (CARD, CARD_PICTURE):
        if (model.root / name).is_dir():
            raise ModelError(f"{model.root / name}: is a folder, where a file belongs; rename it")
    indices = {denoiser_weights.index for denoiser_weights in weights.values()}
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
            if file.name in (MANIFEST, COMPACT_MANIFEST):
                raise ModelError(
                    f"{file}: lies beside no denoiser, so it is not of this model; remove it, for "
                    "the copy would seem to be pruned there"
                )
            yield file


def _is_card(file: Path) -> bool:
    return file.name == "config.json" or file.name.startswith(("README", "LICENSE"))


def _describes(file: Path) -> bool:
    """Whether a file only describes the model."""
    return file.name.startswith("README") or file.name == CARD_PICTURE


def copied_bytes(model: ModelFolder, weights: Mapping[str, Weights]) -> int:
    """The size of the copy."""
    others = sum(file.stat().st_size for file in other_files(model, weights))
    return others + sum(shards.size_bytes for shards in weights.values())


def stamp(model: ModelFolder, weights: Mapping[str, Weights]) -> str:
    """A hash of the names, sizes and times of all files that a model's calls depend on.

    Its cards are none of them: an evaluation writes them anew.
    """
    shards = [shard for denoiser_weights in weights.values() for shard in denoiser_weights.shards]
    others = (file for file in other_files(model, weights) if not _describes(file))
    return stamp_of((*others, *shards), model.root)


def config_hash(root: Path) -> str:
    """One hash of every JSON file of a model folder: configurations, schedules, tokenizers."""
    digest = hashlib.sha256()
    for file in sorted(file for file in root.rglob("*.json") if file.is_file()):
        digest.update(f"{file.relative_to(root).as_posix()}\n".encode())
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()


def stamp_of(files: Iterable[Path], root: Path) -> str:
    """One hash of the names below `root`, the sizes and the times of files."""
    digest = hashlib.sha256()
    for file in files:
        state = file.stat()
        path = file.relative_to(root).as_posix()
        digest.update(f"{path} {state.st_size} {state.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def copy_identity(
    model: ModelFolder, weights: Mapping[str, Weights], settings: Mapping[str, Any]
) -> dict[str, Any]:
    """What must be the same for a run to continue the copy that a killed run began."""
    return {
        "versions": installed_versions(),
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
