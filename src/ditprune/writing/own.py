"""Is what lies there ours to write? What is made new is; a leftover is looked at, never followed.

Beside OUT others may have put a link, or a file with a second name: in a folder such as /tmp, or
in leftovers that someone moved. What is written there would land in another file.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
from pathlib import Path
from typing import IO, Any

from safetensors import SafetensorError

from ditprune.errors import OutputError


def no_follow(file: str, flags: int) -> int:
    """An `opener` of files: one that is a link is not opened."""
    return os.open(file, flags | getattr(os, "O_NOFOLLOW", 0), 0o666)


def check_no_link(*paths: Path) -> None:
    """Refuse links where we write beside OUT: they would lead elsewhere. Raises OutputError."""
    for path in paths:
        if path.is_symlink():
            raise OutputError(f"{path}: is a link, where unfinished work belongs; remove it")


def is_own(state: os.stat_result) -> bool:
    """Whether it is a folder of this user, or a file of this user with a single name."""
    is_single = stat.S_ISDIR(state.st_mode) or (stat.S_ISREG(state.st_mode) and state.st_nlink == 1)
    return is_single and (not hasattr(os, "geteuid") or state.st_uid == os.geteuid())


def check_own(stream: IO[Any], file: Path) -> None:
    """Refuse an open file that is not ours. Raises OutputError."""
    if not is_own(os.fstat(stream.fileno())):
        raise OutputError(
            f"{file}: lies where unfinished work belongs, and is of another user or has a second "
            "name; remove it, or choose another place"
        )


def is_own_tree(folder: Path) -> bool:
    """Whether a folder and all that lies in it is ours, without links."""
    if not (stat.S_ISDIR(folder.lstat().st_mode) and is_own(folder.lstat())):
        return False
    return all(
        is_own(Path(place, name).lstat())
        for place, folders, files in os.walk(folder)
        for name in (*folders, *files)
    )


def remove_leftover(path: Path) -> None:
    """Remove a file or folder beside OUT, and nothing that its links lead to.

    Raises OutputError where something of it stays, as where another user put it.
    """
    try:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(
            f"{path}: lies where unfinished work belongs, and cannot be removed "
            f"({error.strerror or error}); remove it, or choose another place"
        ) from None


def why(path: Path, error: OSError | SafetensorError) -> str:
    """The message of a refusal for what the disk said."""
    number = getattr(error, "errno", None)
    if number == errno.ENOSPC or "No space left" in str(error):
        return f"{path}: no space left on the disk; make room or choose another place"
    reason = getattr(error, "strerror", None) or error
    return f"{path}: cannot be written ({reason}); choose another place"
