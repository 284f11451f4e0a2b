"""Results appear whole or not at all, and only where they may."""

from __future__ import annotations

import errno
import os
import shutil
from collections import namedtuple
from pathlib import Path

import pytest

from ditprune.checkpoints.locate import locate
from ditprune.errors import OutputError
from ditprune.method.words import build
from ditprune.pruning.loop import prune_checkpoint
from ditprune.writing.files import (
    MANIFEST,
    check_file,
    check_folder,
    write_beside,
)
from folders import files_of

needs_proc = pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="names files by it")
FAILURES = [ValueError("x"), KeyboardInterrupt(), SystemExit(3), OSError(errno.ENOSPC, "full")]


@pytest.fixture
def model(tmp_path):
    (tmp_path / "model" / "inner").mkdir(parents=True)
    return tmp_path / "model"


@pytest.fixture
def ours(tmp_path):
    """A folder that ditprune wrote."""
    (tmp_path / "ours").mkdir()
    (tmp_path / "ours" / MANIFEST).write_text("{}", encoding="utf-8")
    return tmp_path / "ours"


def raised_by(failure: BaseException) -> type[BaseException]:
    return OutputError if isinstance(failure, OSError) else type(failure)


@pytest.mark.parametrize("failure", [None, *FAILURES], ids=repr)
def test_a_file_is_replaced_whole_or_kept(failure, tmp_path) -> None:
    file = tmp_path / "file"
    file.write_text("old", encoding="utf-8")
    try:
        with write_beside(file) as part:
            part.write_text("new", encoding="utf-8")
            assert file.read_text(encoding="utf-8") == "old"
            if failure is not None:
                raise failure
    except raised_by(failure):
        assert failure is not None
    assert files_of(tmp_path) == {"file": b"old" if failure else b"new"}


def refused(match: str, check, *args: object) -> None:
    with pytest.raises(OutputError, match=match) as caught:
        check(*args)
    assert "\n" not in str(caught.value)
    assert str(args[0]) in str(caught.value)


def test_a_file_may_be_written(tmp_path, monkeypatch) -> None:
    check_file(tmp_path / "file", overwrite=False)
    (tmp_path / "file").touch()
    check_file(tmp_path / "file", overwrite=True)
    monkeypatch.chdir(tmp_path)
    check_file(tmp_path / "other", overwrite=False)
    assert files_of(tmp_path) == {"file": b""}


def test_a_file_that_may_not_be_written_is_refused(tmp_path) -> None:
    (tmp_path / "file").touch()
    refused("exists; .*overwrite=True", check_file, tmp_path / "file", False)
    refused("is a folder", check_file, tmp_path, True)
    refused("folder does not exist", check_file, tmp_path / "no" / "file", False)
    refused("folder does not exist", check_file, tmp_path / "file" / "file", False)


@pytest.mark.parametrize("path", ["out", "a/b/out"])
def test_a_new_folder_may_be_written(path, model, tmp_path) -> None:
    check_folder(tmp_path / path, model, 1000, overwrite=False)
    assert list(tmp_path.iterdir()) == [model]


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("place", [".", "inner", "inner/out", "new", "..", "../../x/..", "/"])
def test_the_model_its_inside_and_what_holds_it_are_refused(place, overwrite, model) -> None:
    (model / MANIFEST).touch()
    refused(
        "lies in the model|names no new folder", check_folder, model / place, model, 0, overwrite
    )


def test_a_link_to_the_model_is_the_model(model, tmp_path) -> None:
    (tmp_path / "link").symlink_to(model)
    refused("is a link", check_folder, tmp_path / "link", model, 0, True)
    refused("in the model", check_folder, model / "out", tmp_path / "link", 0, True)


def test_a_folder_that_exists_is_refused(ours, model) -> None:
    refused("exists; .*overwrite=True", check_folder, ours, model, 0, False)
    check_folder(ours, model, 0, overwrite=True)


@pytest.mark.parametrize("inner", ["transformer", "."])
def test_a_pruned_pipeline_or_denoiser_may_be_replaced(inner, model, tmp_path) -> None:
    out = tmp_path / "out"
    (out / inner).mkdir(parents=True)
    (out / inner / MANIFEST).touch()
    if inner != ".":
        (out / "model_index.json").write_text('{"transformer": ["diffusers", "X"]}', "utf-8")
    (out / "vae").mkdir()
    check_folder(out, model, 0, overwrite=True)


def test_an_empty_folder_may_be_replaced(model, tmp_path) -> None:
    (tmp_path / "out").mkdir()
    refused("exists", check_folder, tmp_path / "out", model, 0, False)
    check_folder(tmp_path / "out", model, 0, overwrite=True)


@pytest.mark.parametrize("kind", ["folder", "file", "link"])
def test_what_ditprune_did_not_write_is_never_replaced(kind, model, tmp_path) -> None:
    out = tmp_path / "out"
    if kind == "folder":
        out.mkdir()
        (out / "letters.txt").touch()
    elif kind == "file":
        out.touch()
    else:
        out.symlink_to("nowhere")
    refused("not a folder that ditprune wrote|is a link", check_folder, out, model, 0, True)


def test_a_folder_that_holds_pruned_models_among_others_is_never_replaced(model, tmp_path) -> None:
    """A collection is not one result: overwriting it would delete what lies beside."""
    out = tmp_path / "collection"
    (out / "pruned" / "transformer").mkdir(parents=True)
    (out / "pruned" / "transformer" / MANIFEST).touch()
    (out / "letters.txt").touch()
    refused("not a folder that ditprune wrote|is a link", check_folder, out, model, 0, True)


def test_a_link_to_a_pruned_folder_is_refused(ours, model, tmp_path) -> None:
    (tmp_path / "link").symlink_to(ours)
    refused("is a link", check_folder, tmp_path / "link", model, 0, True)


def test_no_space_is_seen_before_any_work(model, tmp_path, monkeypatch) -> None:
    usage = namedtuple("usage", "total used free")
    asked = []

    def disk_usage(path):
        asked.append(path)
        return usage(10**10, 0, 10**9)

    monkeypatch.setattr(shutil, "disk_usage", disk_usage)
    check_folder(tmp_path / "a" / "out", model, 10**9, overwrite=False)
    assert asked == [tmp_path]
    refused("needs 1.00 GB, .* has 1.00 GB free; make room", check_folder, tmp_path / "a" / "out",
            model, 10**9 + 1, False)  # fmt: skip


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission_is_refused(model, tmp_path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o500)
    refused("no permission", check_folder, closed / "out", model, 0, False)
    refused("no permission", check_file, closed / "out", False)


def test_permission_is_asked_of_the_nearest_folder(model, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, _mode: path != tmp_path)
    refused("no permission", check_folder, tmp_path / "a" / "out", model, 0, False)
    refused("no permission", check_file, tmp_path / "file", False)
    check_folder(model.parent.parent / "elsewhere" / "out", model, 0, overwrite=False)


@pytest.fixture
def steps(monkeypatch) -> list[tuple[str, str]]:
    """What reaches the disk, in this order: the real calls are made."""
    seen: list[tuple[str, str]] = []
    real = {"fsync": os.fsync, "replace": os.replace, "rename": os.rename}

    def fsync(number: int) -> None:
        real["fsync"](number)
        seen.append(("fsync", str(Path(f"/proc/self/fd/{number}").readlink())))

    def moved(word: str) -> None:
        def move(source, target, **words) -> None:
            real[word](source, target, **words)
            seen.append(("rename", str(target)))

        monkeypatch.setattr(os, word, move)

    monkeypatch.setattr(os, "fsync", fsync)
    for word in ("replace", "rename"):
        moved(word)
    return seen


@needs_proc
def test_a_file_is_on_the_disk_before_its_name_is(steps, tmp_path) -> None:
    file = tmp_path / "file"
    with write_beside(file) as part:
        part.write_text("x", encoding="utf-8")
    assert steps == [("fsync", str(part)), ("rename", str(file)), ("fsync", str(tmp_path))]


@needs_proc
def test_a_folder_is_on_the_disk_before_its_name_is(steps, tiny_pipeline, tmp_path) -> None:
    out, part = tmp_path / "out", tmp_path / ".out.part"
    prune_checkpoint(locate(str(tiny_pipeline)), out, None, build(saliency="magnitude"))
    *before, renamed, named = steps
    assert (renamed, named) == (("rename", str(out)), ("fsync", str(tmp_path)))
    synced = {path for word, path in before if word == "fsync"}
    assert {str(part / path.relative_to(out)) for path in out.rglob("*")} <= synced
