"""Small files and whole folders: read, refused, or written beside and renamed at the end."""

from __future__ import annotations

import errno
import json
import os
import platform
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib import metadata
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from ditprune.errors import OutputError
from ditprune.writing.json_file import read_json

MANIFEST = "ditprune.json"
COMPACT_MANIFEST = "ditprune-compact.json"
CARD = "README.md"
CARD_PICTURE = "ditprune.png"
_PACKAGES = ("ditprune", "torch", "numpy", "safetensors", "diffusers")


@contextmanager
def write_beside(file: Path) -> Iterator[Path]:
    """A path beside `file` to write; renamed to it when the block ends well, else removed."""
    part = file.with_name(f".{file.name}.part")
    check_no_link(part)
    try:
        yield part
        part.replace(file)
    except (OSError, SafetensorError) as error:
        raise OutputError(why(file, error)) from None
    finally:
        with suppress(OSError):  # a folder that is none has been told
            part.unlink()


def check_file(file: Path, overwrite: bool) -> None:
    """Refuse a file that must not, or cannot, be written. Raises OutputError."""
    if file.is_dir():
        raise OutputError(f"{file}: is a folder; expected a file name")
    if file.exists() and not overwrite:
        raise OutputError(f"{file}: exists; choose another name or pass --overwrite")
    if not file.absolute().parent.is_dir():
        raise OutputError(f"{file}: its folder does not exist; make it first")
    if not os.access(file.absolute().parent, os.W_OK):
        raise OutputError(f"{file}: no permission to write in its folder; choose another place")


def check_folder(out: Path, source: Path, needs_bytes: int, overwrite: bool) -> None:
    """Refuse a folder that must not, or cannot, be written. Raises OutputError."""
    if not out.name:
        raise OutputError(f"'{out}': names no new folder; give OUT a name of its own")
    if out.is_symlink():
        raise OutputError(f"{out}: is a link; name the folder itself")
    resolved, origin = out.resolve(), source.resolve()
    if resolved == origin or resolved in origin.parents or origin in resolved.parents:
        raise OutputError(f"{out}: is, holds or lies in the model {source}; choose another place")
    if out.exists():
        if not overwrite:
            raise OutputError(f"{out}: exists; choose another place or pass --overwrite")
        if not is_ours(out):
            raise OutputError(f"{out}: is not a folder that ditprune wrote; remove it by hand")
    parent = existing_parent(resolved)
    if not os.access(parent, os.W_OK):
        raise OutputError(f"{out}: no permission to write in {parent}; choose another place")
    free = shutil.disk_usage(parent).free
    if free < needs_bytes:
        raise OutputError(
            f"{out}: needs {needs_bytes / 1e9:.2f} GB, {parent} has {free / 1e9:.2f} GB free; "
            "make room or choose another disk"
        )


def ensure_folder(folder: Path) -> None:
    """Make a folder that results are put into, if it is not there. Raises OutputError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(why(folder, error)) from None


@contextmanager
def results_folder(
    folder: Path, is_worth_keeping: Callable[[], bool] = lambda: False
) -> Iterator[None]:
    """A folder that results are put into; one that was not there goes again if the block fails.

    Args:
        is_worth_keeping: asked then; where it is so, everything stays for the next run.

    Raises OutputError.
    """
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        ensure_folder(folder)
        yield
    except BaseException:
        if is_worth_keeping():
            raise
        if folder in made:
            shutil.rmtree(folder, ignore_errors=True)
        for parent in made[1:]:
            with suppress(OSError):  # not made yet, or filled by others since
                parent.rmdir()
        raise


def is_ours(folder: Path) -> bool:
    """Empty, or with a manifest where `prune` or `convert` puts it."""
    if not folder.is_dir():
        return False
    names = (MANIFEST, COMPACT_MANIFEST)
    manifests = [p for name in names for p in (folder / name, *folder.glob(f"*/{name}"))]
    return any(manifest.is_file() for manifest in manifests) or not any(folder.iterdir())


def is_compact(folder: Path) -> bool:
    """Whether `convert` has packed the weights of a denoiser's folder."""
    return (folder / COMPACT_MANIFEST).is_file()


def existing_parent(path: Path) -> Path:
    """The nearest folder above a path. Raises OutputError."""
    for parent in path.parents:
        if parent.is_dir():
            return parent
    raise OutputError(f"{path}: no folder above it exists")


def old_of(out: Path) -> Path:
    """Where the folder that `out` replaces lies between two renames."""
    return out.with_name(f".{out.name}.old")


def check_no_link(*paths: Path) -> None:
    """Refuse links where we write beside OUT: they would lead elsewhere. Raises OutputError."""
    for path in paths:
        if path.is_symlink():
            raise OutputError(f"{path}: is a link, where unfinished work belongs; remove it")


def put_back(out: Path) -> None:
    """Undo the first of the two renames, where the second never came."""
    if out.name and not out.exists() and old_of(out).exists():
        old_of(out).rename(out)


def why(path: Path, error: OSError | SafetensorError) -> str:
    """The message of a refusal for what the disk said."""
    number = getattr(error, "errno", None)
    if number == errno.ENOSPC or "No space left" in str(error):
        return f"{path}: no space left on the disk; make room or choose another place"
    reason = getattr(error, "strerror", None) or error
    return f"{path}: cannot be written ({reason}); choose another place"


MANIFEST_FORMAT = 1


def write_manifest(folder: Path, claims: Mapping[str, Any]) -> None:
    """Write the manifest of a denoiser folder."""
    content = {"format": MANIFEST_FORMAT, "versions": installed_versions(), **claims}
    (folder / MANIFEST).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read it. Raises ModelError where it is missing or no JSON object."""
    return read_json(folder / MANIFEST)


def installed_versions() -> dict[str, str]:
    """The versions a result depends on."""
    return {"python": platform.python_version()} | {
        name: metadata.version(name) for name in _PACKAGES
    }
