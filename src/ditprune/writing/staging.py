"""A folder that takes long to write: killed at any moment, the same command goes on with it.

Beside OUT lie `.OUT.part`, which becomes OUT, and `.OUT.journal`, which says of what run it is
and what is done; with an OUT to replace, `.OUT.old` for the moment between two renames. The order
at the end is: everything on the disk, the journal says so, OUT → .OUT.old, .OUT.part → OUT,
.OUT.old removed, the journal removed. At every point between, what lies there tells what is left.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from ditprune.errors import EndedError, OutputError
from ditprune.writing.files import check_folder, check_place, old_of, put_back, sync, why
from ditprune.writing.json_file import parse_json
from ditprune.writing.lock import hold, let_go
from ditprune.writing.own import check_no_link, is_own_tree, remove_leftover
from ditprune.writing.replaceable import check_replaceable, is_ours
from ditprune.writing.unfinished import differences


class Journal:
    """An open journal; made empty where there is none. One process at a time holds it.

    Raises OutputError where another one does.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self._stream = hold(file)
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
        let_go(self._stream, self.file)

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
        for line in self._stream.read().splitlines(keepends=True):
            try:
                record = parse_json(line)
            except ValueError:
                break
            if not line.endswith(b"\n") or not isinstance(record, dict):
                break
            lines.append(record)
            size += len(line)
        return lines, size


_WRITTEN = {"written": True}


@dataclass(frozen=True)
class Staging:
    """A folder in the making.

    Args:
        part: what OUT will be.
        journal: what of it is done, by this run and by killed ones before.
        is_written: all of it is; nothing but the last renames was left.
    """

    part: Path
    journal: Journal
    is_written: bool


def part_of(out: Path) -> Path:
    """Where OUT lies until it is whole."""
    return out.with_name(f".{out.name}.part") if out.name else out


@contextmanager
def resumable_folder(
    out: Path, source: Path, needs_bytes: int, identity: Mapping[str, Any], overwrite: bool
) -> Iterator[Staging]:
    """A folder beside `out` that takes its place when the block ends well.

    An interrupt, or the end of another process of the run, keeps folder and journal for the next
    run with the same identity; any other failure removes both, and `out` is what it was.

    Args:
        source: what is copied; `out` may not be in it.
        needs_bytes: the size of the whole.
        identity: plain values that make a run this one.
        overwrite: whether an `out` that is ours may be replaced, and another run dropped.

    Raises OutputError.
    """
    try:
        staging = _open(out, source, needs_bytes, identity, overwrite)
    except OSError as error:
        raise OutputError(why(out, error)) from None
    try:
        yield staging
        if not staging.is_written:
            for path in (staging.part, *staging.part.rglob("*")):
                sync(path)
            staging.journal.append(_WRITTEN)
            staging.journal.sync()
    except (OSError, SafetensorError) as error:
        _discard(staging, out)
        raise OutputError(why(out, error)) from None
    except EndedError:
        staging.journal.close()
        raise
    except Exception:
        _discard(staging, out)
        raise
    except BaseException:
        staging.journal.close()
        raise
    try:
        _place(staging.part, out)
        staging.journal.remove()
    except OSError as error:
        raise OutputError(why(out, error)) from None
    finally:
        staging.journal.close()


def check_before(out: Path, overwrite: bool, model: object) -> None:
    """The refusals of `check_early` that need no model, where that has to be fetched first.

    Raises OutputError.
    """
    if not isinstance(model, (str, Path)):
        return  # no folder, which is refused before anything is written
    if not Path(model).is_dir() and not (out.name and _journal_of(out).exists()):
        check_place(out, overwrite)


def check_early(out: Path, source: Path, overwrite: bool) -> None:
    """Refuse, before long preparations, places that `resumable_folder` would refuse after them.

    Raises OutputError.
    """
    if not (out.name and _journal_of(out).exists()):  # which may tell of a finished OUT
        check_folder(out, source, needs_bytes=0, overwrite=overwrite)


def missing_bytes(out: Path, needs_bytes: int) -> int:
    """What is still to be written of a folder, where a killed run has left some."""
    left = part_of(out).rglob("*") if out.name else ()
    return needs_bytes - sum(_allocated_bytes(file) for file in left if file.is_file())


def _open(
    out: Path, source: Path, needs_bytes: int, identity: Mapping[str, Any], overwrite: bool
) -> Staging:
    part, file = part_of(out), _journal_of(out)
    if out.name:
        check_no_link(part, file, old_of(out))
    journal = Journal(file) if file.name and file.exists() else None
    begins = False
    try:
        if journal is not None and _is_placed(journal, out):
            if journal.identity == identity:
                return Staging(part, journal, is_written=True)
            _place(part, out)
            journal.remove()
            journal = None
        _check_old(out, journal)
        resumes = journal is not None and journal.identity == identity
        resumes = resumes and (not part.exists() or is_own_tree(part))
        if not (resumes and _is_written(journal)):
            put_back(out)
        check_folder(out, source, missing_bytes(out, needs_bytes), overwrite)
        if journal is None:
            out.parent.mkdir(parents=True, exist_ok=True)
            journal = Journal(file)
        elif journal.identity not in (None, identity) and not overwrite:
            changed = "; ".join(differences(journal.identity, identity))
            raise OutputError(
                f"{out}: an unfinished run with other settings lies beside it ({changed}); finish "
                "it with its own settings, or pass --overwrite to drop it"
            )
        if not resumes or (_is_written(journal) and not part.exists()):
            remove_leftover(part)
            begins = True
            journal.start(identity)
        part.mkdir(exist_ok=resumes)
        return Staging(part, journal, _is_written(journal))
    except BaseException:
        if journal is not None:
            (journal.close if journal.identity and not begins else journal.remove)()
        raise


def _check_old(out: Path, journal: Journal | None) -> None:
    """Refuse what lies where the old OUT will, unless a killed run put it there."""
    if journal is None and out.name and old_of(out).exists():
        raise OutputError(
            f"{old_of(out)}: lies where an OUT that is replaced is kept meanwhile; move it away"
        )


def _journal_of(out: Path) -> Path:
    return out.with_name(f".{out.name}.journal") if out.name else out


def _is_written(journal: Journal | None) -> bool:
    return journal is not None and _WRITTEN in journal.records


def _is_placed(journal: Journal, out: Path) -> bool:
    """Killed between its last rename and the end of its journal."""
    return _is_written(journal) and not part_of(out).exists() and is_ours(out)


def _place(part: Path, out: Path) -> None:
    """The last renames, from wherever a killed run left them."""
    old = old_of(out)
    if part.exists():
        if out.exists():
            check_replaceable(out)  # what was put into it meanwhile stays
            if old.exists():
                shutil.rmtree(old)
            out.rename(old)
        try:
            part.rename(out)
        except OSError:
            put_back(out)
            raise
        sync(out.parent)
    if old.exists():
        shutil.rmtree(old)


def _discard(staging: Staging, out: Path) -> None:
    put_back(out)
    shutil.rmtree(staging.part, ignore_errors=True)
    staging.journal.remove()


def _allocated_bytes(file: Path) -> int:
    """The file's bytes on the disk; what is only reserved for later counts as none."""
    state = file.stat()
    return min(state.st_size, getattr(state, "st_blocks", 0) * 512)
