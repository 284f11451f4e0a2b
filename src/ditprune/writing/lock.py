"""How does one process at a time write an output? By a lock that ends with the process.

The lock is on an open file beside the output. It is the system that gives it back, also after a
kill; a file that such a run left is no lock. POSIX and Windows have different ones. A system with
neither is refused, because two runs that write one folder would spoil it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import IO, Any, BinaryIO

from ditprune.errors import OutputError
from ditprune.writing.own import check_own, no_follow, why

# A byte far behind the end of every journal: on Windows nobody else can read a locked byte.
_PLACE = 2**30
_TRIES = 5  # a run that ends may remove the file between our opening and locking it
ON_WINDOWS = os.name == "nt"


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """Hold an output, a file or a folder, until the block ends; a hidden file beside it is locked.

    Raises OutputError where another process holds it, or no file can be made there.
    """
    with _locked(lock_of(out)):
        yield


def lock_of(out: Path) -> Path:
    """The file beside an output that is locked while it is written."""
    return out.with_name(f".{out.name}.lock")


@contextmanager
def locked_folder(folder: Path) -> Iterator[None]:
    """Hold a folder that results are put into, by a hidden file in it. Raises as `locked`."""
    with _locked(folder / ".lock"):
        yield


@contextmanager
def _locked(file: Path) -> Iterator[None]:
    made = [parent for parent in file.parents if not parent.exists()]
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        stream = hold(file)
    except OSError as error:
        raise OutputError(why(file, error)) from None
    try:
        yield
    finally:
        let_go(stream, file)
        for parent in made:
            with suppress(OSError):  # filled by now
                parent.rmdir()


def hold(file: Path) -> BinaryIO:
    """A file that no other process holds until it is closed; made empty where there is none.

    Raises OutputError where another process does, and where it is not ours.
    """
    for _ in range(_TRIES):
        stream = open(file, "a+b", buffering=0, opener=no_follow)  # noqa: SIM115
        try:
            lock(stream)
            if is_at(stream, file):
                check_own(stream, file)
                return stream
        except BlockingIOError:
            stream.close()
            break
        except BaseException:
            stream.close()
            raise
        stream.close()
    raise held(file)


def held(file: Path) -> OutputError:
    """The refusal of a file that another process holds."""
    return OutputError(
        f"{file}: another run is writing here; wait for its end or choose another place"
    )


def let_go(stream: IO[Any], file: Path) -> None:
    """Remove a file that is held, and let it go: in this order, so that nobody holds a lost one."""
    if ON_WINDOWS:  # where a file that is open cannot be removed
        stream.close()
    file.unlink(missing_ok=True)
    stream.close()


def is_at(stream: IO[Any], file: Path) -> bool:
    """Whether an open file still has this name."""
    try:
        return os.path.samestat(os.fstat(stream.fileno()), file.lstat())
    except FileNotFoundError:
        return False


def lock(stream: IO[Any]) -> None:
    """Lock an open file until it is closed.

    Raises BlockingIOError where another process holds it, OutputError where there are no locks.
    """
    posix, windows = _module("fcntl"), _module("msvcrt")
    if posix is not None:
        posix.flock(stream, posix.LOCK_EX | posix.LOCK_NB)
    elif windows is not None:
        _lock_byte(stream, windows)
    else:
        raise OutputError(
            f"{stream.name}: this system cannot lock files, so that two runs could write here at "
            "once; run ditprune on another system"
        )


def _module(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError:
        return None


def _lock_byte(stream: IO[Any], windows: Any) -> None:
    stream.seek(_PLACE)
    try:
        windows.locking(stream.fileno(), windows.LK_NBLCK, 1)
    except OSError as error:  # of any other kind than on POSIX
        raise BlockingIOError(error.errno, error.strerror) from None
    finally:
        stream.seek(0)
