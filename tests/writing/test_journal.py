"""The journal: whole lines come back, a torn one is forgotten, one process holds it."""

from __future__ import annotations

import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from ditprune.errors import OutputError
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
