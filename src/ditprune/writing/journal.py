"""The record of a long write, one JSON line for each thing done, so that a killed run can continue.

The first line is the identity of the run. Each other line is written after the bytes it describes,
so after a kill every line is true but a torn last one; reading stops there.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ditprune.errors import OutputError

try:
    import fcntl
except ImportError:  # no such locks on Windows
    fcntl = None  # type: ignore[assignment]


class Journal:
    """An open journal; made empty where there is none. One process at a time holds it.

    Raises OutputError where another one does.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self._stream = file.open("a+b", buffering=0)
        try:
            if fcntl is not None:
                fcntl.flock(self._stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            is_current = file.exists() and os.path.samestat(
                os.fstat(self._stream.fileno()), file.stat()
            )
        except BlockingIOError:
            is_current = False
        if not is_current:
            self._stream.close()
            raise OutputError(
                f"{file}: another run is writing here; wait for its end or choose another place"
            )
        lines, size = self._read()
        self._stream.truncate(size)
        self.identity: dict[str, Any] | None = lines[0] if lines else None
        self.records: list[dict[str, Any]] = lines[1:]

    def start(self, identity: Mapping[str, Any]) -> None:
        """Forget everything and begin the journal of another run."""
        self._stream.truncate(0)
        self.identity, self.records = None, []
        self._write(identity)
        self.identity = dict(identity)
        self.sync()

    def append(self, record: Mapping[str, Any]) -> None:
        """Say that something is done; its bytes are written before."""
        self._write(record)
        self.records.append(dict(record))

    def sync(self) -> None:
        """Bring the lines to the disk; the bytes they speak of go first."""
        os.fsync(self._stream.fileno())

    def remove(self) -> None:
        self.file.unlink(missing_ok=True)
        self.close()

    def close(self) -> None:
        self._stream.close()

    def _write(self, record: Mapping[str, Any]) -> None:
        line = json.dumps(record).encode() + b"\n"
        if self._stream.write(line) != len(line):
            raise OSError(28, "No space left on device", str(self.file))

    def _read(self) -> tuple[list[dict[str, Any]], int]:
        """The lines that are whole, and how many bytes they take."""
        self._stream.seek(0)
        lines, size = [], 0
        for line in self._stream.readall().splitlines(keepends=True):
            try:
                record = json.loads(line)
            except ValueError:
                break
            if not line.endswith(b"\n") or not isinstance(record, dict):
                break
            lines.append(record)
            size += len(line)
        return lines, size
