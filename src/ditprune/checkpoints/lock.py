"""One run at a time writes into a place."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path

from ditprune.errors import OutputError

try:
    import fcntl
except ImportError:  # no such locks on Windows
    fcntl = None  # type: ignore[assignment]


def hold(file: Path) -> FileIO:
    """Open a file, made empty where there is none, that no other run can hold until it is closed.

    A kill closes it too. Raises OutputError where another run has it.
    """
    stream = FileIO(file, "a+")
    try:
        if fcntl is not None:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        is_current = file.exists() and os.path.samestat(os.fstat(stream.fileno()), file.stat())
    except BlockingIOError:
        is_current = False
    if not is_current:
        stream.close()
        raise OutputError(
            f"{file}: another run is writing here; wait for its end or choose another place"
        )
    return stream


@contextmanager
def alone(file: Path) -> Iterator[None]:
    """Hold a file for as long as the block runs; it is removed at the end. Raises OutputError."""
    stream = hold(file)
    try:
        yield
    finally:
        file.unlink(missing_ok=True)
        stream.close()
