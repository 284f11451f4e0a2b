"""A folder in the making: taken up by the same run, guarded from others, placed from anywhere."""

from __future__ import annotations

import os
import shutil
from contextlib import contextmanager
from pathlib import Path

import pytest

from ditprune.errors import OutputError
from ditprune.writing.files import MANIFEST
from ditprune.writing.staging import Journal, missing_bytes, resumable_folder
from folders import files_of

GUARD = {"recipe": {"sparsity": 0.5}, "versions": {"torch": "1"}}
OTHER = {"recipe": {"sparsity": 0.3}, "versions": {"torch": "1"}}
NEW = {"config.json": b"1", MANIFEST: b"{}"}


@pytest.fixture
def model(tmp_path) -> Path:
    (tmp_path / "model").mkdir()
    return tmp_path / "model"


@pytest.fixture
def out(tmp_path) -> Path:
    return tmp_path / "place" / "out"


class Killed(BaseException):
    """Like a kill, nothing after it runs but `finally`."""


@contextmanager
def run(out: Path, model: Path, guard=GUARD, overwrite=False):
    with resumable_folder(out, model, 0, guard, overwrite) as staging:
        yield staging


def write(out: Path, model: Path, guard=GUARD, overwrite=False, text: bytes = b"1") -> None:
    with run(out, model, guard, overwrite) as staging:
        if not staging.is_written:
            (staging.part / "config.json").write_bytes(text)
            (staging.part / MANIFEST).write_text("{}", encoding="utf-8")


def fail(failure: BaseException, out: Path, model: Path, guard=GUARD, overwrite=False) -> None:
    """A run that writes and records one file, then fails."""
    with run(out, model, guard, overwrite) as staging:
        (staging.part / "config.json").write_bytes(b"1")
        staging.journal.append({"tensor": "one"})
        raise failure


def kill_midway(out: Path, model: Path, guard=GUARD, overwrite=False) -> None:
    with pytest.raises(Killed):
        fail(Killed(), out, model, guard, overwrite)


def left(out: Path) -> set[str]:
    """What lies beside the model and OUT."""
    return {path.name for path in out.parent.iterdir()} - {out.name}


def test_it_appears_at_the_end_only(out, model) -> None:
    with run(out, model) as staging:
        assert list(staging.part.iterdir()) == []
        assert not staging.is_written
        (staging.part / "config.json").write_bytes(b"1")
        assert not out.exists()
    assert files_of(out.parent) == {"out/config.json": b"1"}


def test_an_interrupt_keeps_what_is_done_for_the_same_run(out, model) -> None:
    kill_midway(out, model)
    assert left(out) == {".out.part", ".out.journal"}
    assert not out.exists()
    with run(out, model) as staging:
        assert files_of(staging.part) == {"config.json": b"1"}
        assert staging.journal.records == [{"tensor": "one"}]
        (staging.part / MANIFEST).write_text("{}", encoding="utf-8")
    assert files_of(out) == NEW
    assert left(out) == set()


def test_another_run_is_refused_by_what_differs(out, model) -> None:
    kill_midway(out, model)
    before = files_of(out.parent)
    with pytest.raises(OutputError, match=r"recipe\.sparsity: 0\.5 → 0\.3") as caught:
        write(out, model, OTHER)
    assert "finish it with its own settings" in str(caught.value)
    assert "overwrite=True" in str(caught.value)
    assert "torch" not in str(caught.value)
    assert files_of(out.parent) == before
    write(out, model)
    assert files_of(out) == NEW


@pytest.mark.parametrize("guard", [GUARD, OTHER])
def test_overwrite_drops_another_run_and_goes_on_with_the_same(guard, out, model) -> None:
    kill_midway(out, model)
    with run(out, model, guard, overwrite=True) as staging:
        assert files_of(staging.part) == ({"config.json": b"1"} if guard == GUARD else {})
        assert bool(staging.journal.records) == (guard == GUARD)
    assert left(out) == set()


@pytest.mark.parametrize("failure", [ValueError("x"), OSError(28, "full"), OSError(5, "x")])
@pytest.mark.parametrize("is_old", [False, True])
def test_a_failure_leaves_nothing_but_what_was(failure, is_old, out, model) -> None:
    if is_old:
        write(out, model, OTHER)
    before = files_of(out.parent) if is_old else {}
    kill_midway(out, model, overwrite=True)
    with pytest.raises(OutputError if isinstance(failure, OSError) else ValueError):
        fail(failure, out, model, overwrite=True)
    assert files_of(out.parent) == before


def test_a_part_without_journal_is_not_believed(out, model) -> None:
    out.with_name(".out.part").mkdir(parents=True)
    (out.with_name(".out.part") / "rest").touch()
    write(out, model)
    assert files_of(out.parent) == {f"out/{name}": raw for name, raw in NEW.items()}


def test_a_journal_without_part_begins_anew(out, model) -> None:
    kill_midway(out, model)
    shutil.rmtree(out.with_name(".out.part"))
    write(out, model)
    assert files_of(out) == NEW


def sealed(out: Path, model: Path, is_old: bool) -> Path:
    """A run killed when everything is written and nothing renamed; its part."""
    if is_old:
        write(out, model, OTHER, text=b"old")
    kill_midway(out, model, overwrite=True)
    part = out.with_name(".out.part")
    (part / MANIFEST).write_text("{}", encoding="utf-8")
    journal = Journal(out.with_name(".out.journal"))
    journal.append({"written": True})
    journal.close()
    return part


STEPS = ["nothing", "out to old", "part to out", "old half removed", "old removed"]


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("is_old", [False, True])
def test_the_last_renames_are_finished_from_anywhere(step, is_old, out, model) -> None:
    part, old = sealed(out, model, is_old), out.with_name(".out.old")
    done = STEPS.index(step)
    if is_old and done >= 1:
        out.rename(old)
    if done >= 2:
        part.rename(out)
    if is_old and done >= 3:
        (old / MANIFEST).unlink()
    if is_old and done >= 4:
        shutil.rmtree(old)
    with run(out, model, overwrite=is_old) as staging:
        assert staging.is_written
    assert files_of(out) == NEW
    assert left(out) == set()


def test_a_run_that_only_left_its_journal_does_not_hinder_another(out, model) -> None:
    sealed(out, model, False).rename(out)
    with pytest.raises(OutputError, match="exists; choose another place or pass overwrite=True"):
        write(out, model, OTHER)
    assert files_of(out) == NEW
    assert left(out) == set()


def test_dropping_a_run_between_its_renames_puts_the_old_folder_back(out, model) -> None:
    sealed(out, model, True)
    out.rename(out.with_name(".out.old"))
    with pytest.raises(ValueError, match="x"):
        fail(ValueError("x"), out, model, OTHER, overwrite=True)
    assert files_of(out)["config.json"] == b"old"
    assert left(out) == set()


def test_an_out_that_was_removed_is_made_again(out, model) -> None:
    shutil.rmtree(sealed(out, model, False))
    write(out, model, text=b"again")
    assert files_of(out)["config.json"] == b"again"


def test_a_folder_that_is_not_ours_is_never_taken_for_a_finished_run(out, model) -> None:
    shutil.rmtree(sealed(out, model, False))
    out.mkdir()
    (out / "letters.txt").touch()
    with pytest.raises(OutputError, match="exists"):
        write(out, model)
    assert files_of(out) == {"letters.txt": b""}


def test_what_a_killed_run_has_written_is_not_needed_again(out, model) -> None:
    assert missing_bytes(out, 10_000_000) == 10_000_000
    part = out.with_name(".out.part")
    part.mkdir(parents=True)
    with (part / "whole").open("wb") as stream:
        stream.write(os.urandom(5_000_000))  # which no file system makes smaller
        os.fsync(stream.fileno())
    with (part / "sparse").open("wb") as stream:
        stream.truncate(4_000_000)
    assert missing_bytes(out, 10_000_000) == 5_000_000
