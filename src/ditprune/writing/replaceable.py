"""Which folder may be replaced? One that a manifest of ours describes, with nothing else in it."""

from __future__ import annotations

import os
from pathlib import Path, PurePath
from typing import Any

from ditprune.errors import DitpruneError, OutputError
from ditprune.writing.json_file import MALFORMED, read_json
from ditprune.writing.model_files import (
    CARD_PICTURE,
    COMPACT_MANIFEST,
    INDEX,
    MANIFEST,
    MASK,
    belongs,
    components_of,
    files_below,
    is_index,
    is_text,
)

BESIDE = "beside"  # the key of a manifest: the files that were copied, with their hashes
_MANIFESTS = (MANIFEST, COMPACT_MANIFEST)


def is_ours(folder: Path) -> bool:
    """Empty, or with a manifest where `prune` or `convert` puts it."""
    return folder.is_dir() and (bool(_described(folder)) or not any(folder.iterdir()))


def check_replaceable(folder: Path) -> None:
    """Refuse a folder that holds what no manifest of ours lists. Raises OutputError."""
    if not is_ours(folder):
        raise OutputError(f"{folder}: is not a folder that ditprune wrote; remove it by hand")
    listed = listed_files(folder)
    others = [path.as_posix() for path in files_below(folder) if path not in listed]
    if others:
        more = f" and {len(others) - 1} more files" if len(others) > 1 else ""
        raise OutputError(
            f"{folder}: holds {others[0]}{more}, which no manifest of ditprune lists; move it "
            "away, or choose another place"
        )


def listed_files(folder: Path) -> set[PurePath]:
    """The files that ditprune wrote into a folder, as its manifests say, from the folder."""
    listed: set[PurePath] = set()
    lists_copies = True
    for place in _described(folder):
        names, copied = _listed_in(folder / place)
        listed |= {place / name for name in (*names, "config.json", MASK, *_MANIFESTS)}
        beside = (path.name for path in (folder / place).iterdir())
        listed |= {place / name for name in beside if is_text(name) or is_index(name)}
        lists_copies &= copied is not None
        listed |= {PurePath(os.path.normpath(place / name)) for name in copied or ()}
    if (folder / INDEX).is_file():
        components = components_of(folder)
        listed |= {PurePath(INDEX), PurePath(CARD_PICTURE)}
        listed |= {
            path
            for path in files_below(folder)
            if belongs(path, components) and (not lists_copies or is_text(path.name))
        }
    return listed | {PurePath(CARD_PICTURE)}


def _described(folder: Path) -> list[PurePath]:
    """The folders of denoisers that have a manifest: of a pipeline's components, or the root."""
    inside = sorted(components_of(folder)) if (folder / INDEX).is_file() else ["."]
    return [
        PurePath(name)
        for name in inside
        if any((folder / name / manifest).is_file() for manifest in _MANIFESTS)
    ]


def _listed_in(denoiser: Path) -> tuple[list[str], dict[str, Any] | None]:
    """The names of the shards of a denoiser, and the copied files if they were noted."""
    names: list[str] = []
    copied: dict[str, Any] | None = None
    for manifest, read in ((MANIFEST, _pruned), (COMPACT_MANIFEST, _compact)):
        try:
            shards, beside = read(read_json(denoiser / manifest))
        except (DitpruneError, *MALFORMED):  # then no shard is listed
            continue
        names, copied = names + shards, copied if beside is None else beside
    return names, copied


def _pruned(content: dict[str, Any]) -> tuple[list[str], dict[str, Any] | None]:
    beside = content.get(BESIDE)
    written = content.get("headers_sha256")  # of a shrunk folder, whose shards are not the base's
    shards = content["base"]["headers_sha256"] if written is None else written
    return list(shards), None if beside is None else dict(beside)


def _compact(content: dict[str, Any]) -> tuple[list[str], None]:
    return list(content["headers"]), None
