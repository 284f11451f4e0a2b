"""The journal: whole lines come back, a torn one is forgotten, one process holds it."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from ditprune.errors import OutputError
from ditprune.writing import lock
from ditprune.writing.staging import Journal

GUARD = {"recipe": {"sparsity": 0.1}, "text": "ä"}
RECORDS = [{"tensor": "a", "g_out": 0.1 + 0.2}, {"tensor": "b", "outcome": None}]


@pytest.fixture
def file(tmp_path) -> Path:
    """A journal of two records."""
    journal = Journal(tmp_path / "journal")
    journal.start(GUARD)
    for record in RECORDS:
        journal.append(record)
    journal.close()
    return tmp_path / "journal"


def lines_of(file: Path) -> tuple[object, list[dict[str, object]]]:
    """The guard and the records that a journal has when it is opened."""
    with closing(Journal(file)) as journal:
        return journal.identity, journal.records


def append(file: Path, record: dict[str, object]) -> None:
    with closing(Journal(file)) as journal:
        journal.append(record)


def test_what_was_written_comes_back(file) -> None:
    assert lines_of(file) == (GUARD, RECORDS)
    append(file, {"more": 1})
    assert lines_of(file) == (GUARD, [*RECORDS, {"more": 1}])


def test_a_record_is_in_the_file_when_append_returns(file) -> None:
    with closing(Journal(file)) as journal:
        journal.append({"a": 1})
        assert file.read_bytes().endswith(b'{"a": 1}\n')
        assert journal.records == [*RECORDS, {"a": 1}]


def test_a_new_journal_is_empty(tmp_path) -> None:
    assert lines_of(tmp_path / "journal") == (None, [])


def test_every_torn_end_is_cut_off_and_written_over(file) -> None:
    whole = file.read_bytes()
    ends = [i + 1 for i, byte in enumerate(whole) if byte == ord("\n")]
    for size in range(len(whole)):
        file.write_bytes(whole[:size])
        expected = [GUARD, *RECORDS][: sum(end <= size for end in ends)]
        guard, records = lines_of(file)
        assert [line for line in (guard, *records) if line] == expected
        append(file, {"next": True})
        guard, records = lines_of(file)
        assert [line for line in (guard, *records) if line] == [*expected, {"next": True}]


@pytest.mark.parametrize("line", [b"\x00" * 40, b"[1]", b"3", b"\xff\xfe"], ids=repr)
def test_nothing_after_a_spoilt_line_is_believed(line, file) -> None:
    first, second, third = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(first + second + line + b"\n" + third)
    assert lines_of(file) == (GUARD, RECORDS[:1])


def test_another_run_begins_it_anew(file) -> None:
    with closing(Journal(file)) as journal:
        journal.start({"other": 1})
        assert (journal.identity, journal.records) == ({"other": 1}, [])
    assert lines_of(file) == ({"other": 1}, [])


def test_it_can_be_removed(file) -> None:
    Journal(file).remove()
    assert not file.exists()


HOLD = """
import sys
from pathlib import Path
from ditprune.writing import lock, staging
from ditprune.writing.staging import Journal
journal = Journal(Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
"""


def test_one_process_holds_it(file) -> None:
    pytest.importorskip("fcntl")
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(file)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(OutputError, match="another run is writing here; wait"):
            Journal(file)
        other.kill()
    assert lines_of(file) == (GUARD, RECORDS)


class Windows:
    """The locks of Windows' `msvcrt`, by those of POSIX: a byte of the file, of one process."""

    LK_NBLCK = 2

    @staticmethod
    def locking(number: int, mode: int, num_bytes: int) -> None:
        import fcntl

        assert mode == Windows.LK_NBLCK
        place = os.lseek(number, 0, os.SEEK_CUR)
        assert place > 10**9  # far from what is read and written
        try:
            fcntl.lockf(number, fcntl.LOCK_EX | fcntl.LOCK_NB, num_bytes, place)
        except OSError:
            raise PermissionError(13, "Permission denied") from None


def test_one_process_holds_it_on_windows(file, monkeypatch) -> None:
    pytest.importorskip("fcntl")
    systems = {"fcntl": None, "msvcrt": Windows}
    monkeypatch.setattr(lock, "_module", systems.get)
    first = Journal(file)
    assert (first.identity, first.records) == (GUARD, RECORDS)
    first.append({"more": 1})
    code = f"""
import sys
sys.path[:0] = {sys.path!r}
import test_journal
from ditprune.writing import lock
lock._module = {{"fcntl": None, "msvcrt": test_journal.Windows}}.get
try:
    test_journal.Journal(test_journal.Path(sys.argv[1]))
except test_journal.OutputError as error:
    print(error)
"""
    there = Path(__file__).parent
    ran = subprocess.run(
        [sys.executable, "-c", code, str(file)], cwd=there, capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    assert "another run is writing here; wait" in ran.stdout
    first.close()
    assert lines_of(file) == (GUARD, [*RECORDS, {"more": 1}])


def test_a_system_without_locks_is_refused(file, monkeypatch) -> None:
    monkeypatch.setattr(lock, "_module", {}.get)
    with pytest.raises(OutputError, match=r"journal: this system cannot lock files"):
        Journal(file)
    assert file.read_bytes()


@pytest.mark.parametrize("system", ["posix", "nt"])
def test_a_journal_that_is_removed_is_gone(file, system, monkeypatch) -> None:
    """On Windows an open file cannot be removed."""
    journal, unlink = Journal(file), Path.unlink

    def unlink_closed(path: Path, missing_ok: bool = False) -> None:
        assert journal._stream.closed == (system == "nt")
        unlink(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", unlink_closed)
    monkeypatch.setattr(lock, "ON_WINDOWS", system == "nt")
    journal.remove()
    assert not file.exists()
    assert journal._stream.closed
