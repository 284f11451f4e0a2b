"""Small files and whole folders: read, refused, or written beside and renamed at the end."""

from __future__ import annotations

import json
import os
import platform
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from importlib import metadata
from pathlib import Path
from typing import Any, BinaryIO

from safetensors import SafetensorError

from ditprune.errors import OutputError
from ditprune.writing.json_file import read_json
from ditprune.writing.lock import ON_WINDOWS, held, hold, is_at, let_go, lock, locked_folder
from ditprune.writing.model_files import CARD, CARD_PICTURE, COMPACT_MANIFEST, MANIFEST
from ditprune.writing.own import check_no_link, why
from ditprune.writing.replaceable import check_replaceable, is_ours

__all__ = [
    "CARD", "CARD_PICTURE", "COMPACT_MANIFEST", "MANIFEST", "check_file", "check_folder",
    "check_no_link", "check_place", "ensure_folder", "existing_parent", "installed_versions",
    "is_compact", "old_of", "put_back", "read_manifest", "results_folder", "sync", "why",
    "write_beside", "write_manifest",
]  # fmt: skip

_PACKAGES = ("ditprune", "torch", "numpy", "safetensors", "diffusers")


@contextmanager
def write_beside(file: Path, replaces: bool = True) -> Iterator[Path]:
    """A path beside `file` to write; renamed to it when the block ends well, else removed.

    It is a new file, and no other process writes it at the same time.

    Args:
        replaces: whether a file that is there by then may be replaced.

    Raises OutputError.
    """
    part = file.with_name(f".{file.name}.part")
    check_no_link(part)
    _check_is_no_link(file)
    try:
        stream = _new(part)
    except OSError as error:
        raise OutputError(why(file, error)) from None
    try:
        yield part
        os.fsync(stream.fileno())
        if not replaces:
            check_file(file, overwrite=False)
        if ON_WINDOWS:  # where a file that is open cannot be renamed
            stream.close()
        part.replace(file)
        sync(file.parent)
    except (OSError, SafetensorError) as error:
        raise OutputError(why(file, error)) from None
    finally:
        with suppress(OSError):
            if not stream.closed and is_at(stream, part):
                let_go(stream, part)
        stream.close()


def _new(part: Path) -> BinaryIO:
    """A new file that is held; what a killed run left in its place is removed."""
    if part.exists():
        let_go(hold(part), part)
    stream = part.open("x+b", buffering=0)
    try:
        lock(stream)
    except BlockingIOError:
        raise held(part) from None
    return stream


def sync(path: Path) -> None:
    """Bring a file, or the names in a folder, to the disk."""
    if ON_WINDOWS:  # neither folders nor files that are open to read can be synchronised
        return
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def check_file(file: Path, overwrite: bool) -> None:
    """Refuse a file that must not, or cannot, be written. Raises OutputError."""
    _check_is_no_link(file)
    if file.is_dir():
        raise OutputError(f"{file}: is a folder; expected a file name")
    if file.exists() and not overwrite:
        raise OutputError(f"{file}: exists; choose another name or pass --overwrite")
    _check_no_mount(file)
    if not file.absolute().parent.is_dir():
        raise OutputError(f"{file}: its folder does not exist; make it first")
    if not os.access(file.absolute().parent, os.W_OK):
        raise OutputError(f"{file}: no permission to write in its folder; choose another place")


def check_folder(out: Path, source: Path, needs_bytes: int, overwrite: bool) -> None:
    """Refuse a folder that must not, or cannot, be written. Raises OutputError."""
    _check_name(out)
    resolved, origin = out.resolve(), source.resolve()
    if resolved == origin or resolved in origin.parents or origin in resolved.parents:
        raise OutputError(f"{out}: is, holds or lies in the model {source}; choose another place")
    check_place(out, overwrite)
    if out.exists():
        check_replaceable(out)
    parent = existing_parent(resolved)
    if not os.access(parent, os.W_OK):
        raise OutputError(f"{out}: no permission to write in {parent}; choose another place")
    free = shutil.disk_usage(parent).free
    if free < needs_bytes:
        raise OutputError(
            f"{out}: needs {needs_bytes / 1e9:.2f} GB, {parent} has {free / 1e9:.2f} GB free; "
            "make room or choose another disk"
        )


def check_place(out: Path, overwrite: bool) -> None:
    """The refusals of `check_folder` that need no model. Raises OutputError."""
    _check_name(out)
    _check_no_mount(out)
    if out.exists() and not overwrite:
        raise OutputError(f"{out}: exists; choose another place or pass --overwrite")
    if out.exists() and not is_ours(out):
        raise OutputError(f"{out}: is not a folder that ditprune wrote; remove it by hand")


def _check_name(out: Path) -> None:
    if not out.name:
        raise OutputError(f"'{out}': names no new folder; give OUT a name of its own")
    if out.is_symlink():
        raise OutputError(f"{out}: is a link; name the folder itself")


def _check_is_no_link(file: Path) -> None:
    if file.is_symlink():
        raise OutputError(f"{file}: is a link; name the file itself")


def _check_no_mount(out: Path) -> None:
    """Refuse what the system cannot rename or replace. Raises OutputError."""
    if os.path.lexists(out) and (out.is_mount() or _is_bound(out)):
        raise OutputError(
            f"{out}: is a mount point, which no rename can replace; name a place in it"
        )


def _is_bound(out: Path) -> bool:
    """Whether something of the same disk is mounted there, as containers do."""
    try:
        lines = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:  # a system without
        return False
    places = (line.split(" ")[4].replace("\\040", " ") for line in lines.splitlines())
    return str(out.resolve()) in places


def ensure_folder(folder: Path) -> None:
    """Make a folder that results are put into, if it is not there. Raises OutputError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(why(folder, error)) from None


@contextmanager
def results_folder(
    folder: Path, is_worth_keeping: Callable[[], bool] = lambda: False, holds: bool = True
) -> Iterator[None]:
    """A folder that results are put into; one that was not there goes again if the block fails.

    Args:
        is_worth_keeping: asked then; where it is so, everything stays for the next run.
        holds: whether other processes are kept away meanwhile; one of several that share the work
            does it for all.

    Raises OutputError.
    """
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    ensure_folder(folder)
    with locked_folder(folder) if holds else nullcontext():
        try:
            yield
        except BaseException:
            if not is_worth_keeping() and holds and made:
                shutil.rmtree(folder, ignore_errors=True)
                for parent in made[1:]:
                    with suppress(OSError):  # filled by others since
                        parent.rmdir()
            raise


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


def put_back(out: Path) -> None:
    """Undo the first of the two renames, where the second never came."""
    if out.name and not out.exists() and old_of(out).exists():
        old_of(out).rename(out)


MANIFEST_FORMAT = 1


def write_manifest(folder: Path, claims: Mapping[str, Any]) -> None:
    """Write the manifest of a denoiser folder. Raises OutputError."""
    content = {"format": MANIFEST_FORMAT, "versions": installed_versions(), **claims}
    with write_beside(folder / MANIFEST) as part:
        part.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read it. Raises ModelError where it is missing or no JSON object."""
    return read_json(folder / MANIFEST)


def installed_versions() -> dict[str, str]:
    """The versions a result depends on."""
    return {"python": platform.python_version()} | {
        name: metadata.version(name) for name in _PACKAGES
    }
