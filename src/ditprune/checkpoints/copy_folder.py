"""Which other files has a model than its denoisers' weights? To copy them, and to see changes."""

from __future__ import annotations

import filecmp
import hashlib
import logging
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ditprune.checkpoints.locate import ModelFolder, check_inside
from ditprune.checkpoints.weights import Weights
from ditprune.errors import ModelError
from ditprune.writing.files import installed_versions
from ditprune.writing.model_files import (
    CARD,
    CARD_PICTURE,
    COMPACT_MANIFEST,
    MANIFEST,
    MASK,
    PICKLES,
    belongs,
    components_of,
    files_below,
    is_hidden,
    is_text,
    named,
)

_log = logging.getLogger("ditprune")


def other_files(model: ModelFolder, weights: Mapping[str, Weights]) -> Iterator[Path]:
    """All files that belong to the model but the denoisers' weights: parts, configs, cards.

    Of a denoiser's own folder only the config, the index and texts are taken: other weights there,
    or at the root of a pipeline, would be dense copies under the pruned model's name.

    Raises ModelError for a link out of the model, whose file nobody meant to hand on, and for a
    link to a folder, whose files would be missing from the copy. Raises it for what would be taken
    for a file that we write into the copy at the end, too.
    """
    for name in (CARD, CARD_PICTURE):
        if (model.root / name).is_dir():
            raise ModelError(f"{model.root / name}: is a folder, where a file belongs; rename it")
    ours = {folder / name for folder in model.denoisers.values() for name in _OURS}
    for file, is_copied in _sorted_out(model, weights):
        if file.is_symlink() and file.is_dir():
            raise ModelError(f"{file}: is a link to a folder; copy the folder in")
        seems_ours = file.name in (MANIFEST, COMPACT_MANIFEST) and file not in ours
        if not is_copied and not (seems_ours and file.parent == model.root):
            continue
        check_inside(file, model.root)
        if seems_ours:
            raise ModelError(
                f"{file}: lies beside no denoiser, so it is not of this model; remove it, for "
                "the copy would seem to be pruned there"
            )
        yield file


def not_copied(model: ModelFolder, weights: Mapping[str, Weights]) -> list[str]:
    """What lies in a model folder and is no part of the model, by its path from the root."""
    mine = {shard for part in weights.values() for shard in part.shards}
    mine |= {folder / name for folder in model.denoisers.values() for name in _OURS}
    return [
        file.relative_to(model.root).as_posix()
        for file, is_copied in _sorted_out(model, weights)
        if not is_copied and file not in mine
    ]


_OURS = (MANIFEST, COMPACT_MANIFEST, MASK)


def _sorted_out(model: ModelFolder, weights: Mapping[str, Weights]) -> Iterator[tuple[Path, bool]]:
    """Every file that is not hidden, and whether it is copied."""
    indices = {denoiser_weights.index for denoiser_weights in weights.values()}
    folders = tuple(model.denoisers.values())
    components = components_of(model.root)
    for path in sorted(files_below(model.root)):
        file = model.root / path
        if is_hidden(path) or not (file.is_file() or file.is_dir()):  # a link to nothing, a pipe
            continue
        if any(file.is_relative_to(folder) for folder in folders):
            is_card = file.name == "config.json" or is_text(file.name)
            yield file, file.parent in folders and (file in indices or is_card)
        else:
            is_sole = file.suffix in PICKLES and not any(file.parent.glob("*.safetensors"))
            is_part = len(path.parts) > 1 and path.parts[0] in components
            yield file, belongs(path, components) or (is_sole and is_part)


def check_unchanged(
    model: ModelFolder, weights: Mapping[str, Weights], identity: Mapping[str, Any]
) -> None:
    """Refuse a copy of files that were replaced while they were read: half old, half new.

    Args:
        identity: from before the first byte was read; its `files` is a `stamp`.

    Raises ModelError.
    """
    try:
        is_same = stamp(model, weights) == identity["files"]
    except OSError:  # one is gone
        is_same = False
    if not is_same:
        raise ModelError(
            f"{model.name}: its files were changed while they were read; run the same command "
            "again when nothing writes there"
        )


def beside(
    model: ModelFolder, weights: Mapping[str, Weights], root: Path | None = None
) -> dict[str, dict[str, str]]:
    """For each denoiser the hashes of all that is no denoiser's, by the path from its folder.

    Cards are left out: an evaluation writes them anew.

    Args:
        root: of the copy; by default the model's own.
    """
    folders = tuple(model.denoisers.values())
    parts = [
        file.relative_to(model.root)
        for file in other_files(model, weights)
        if not any(file.is_relative_to(folder) for folder in folders) and not _describes(file)
    ]
    hashes = {path: sha256_of((root or model.root) / path) for path in parts}
    return {
        name: {
            Path(os.path.relpath(model.root / path, folder)).as_posix(): digest
            for path, digest in hashes.items()
        }
        for name, folder in model.denoisers.items()
    }


def sha256_of(file: Path) -> str:
    """The hash of a file, a piece in memory at a time."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


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
    """Copy them under `destination`, at the same relative paths; what is there already stays.

    The log names what is left behind.
    """
    for source in other_files(model, weights):
        target = destination / source.relative_to(model.root)
        target.parent.mkdir(parents=True, exist_ok=True)
        if not (target.is_file() and filecmp.cmp(source, target, shallow=False)):
            shutil.copyfile(source, target)
    left = not_copied(model, weights)
    if left:
        _log.info("not copied, as no part of the model: %s", named(left))
