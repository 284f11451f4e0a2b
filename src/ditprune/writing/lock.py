"""How does one process at a time hold a file? By a lock that ends with the process.

POSIX and Windows have different ones. A system with neither is refused, because two runs that write
one folder would spoil it.
"""

from __future__ import annotations

from importlib import import_module
from typing import IO, Any

from ditprune.errors import OutputError

# A byte far behind the end of every journal: on Windows nobody else can read a locked byte.
_PLACE = 2**30


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
