"""Every broken or malicious input ends in one clear line, exit 2, and leaves no trace."""

from __future__ import annotations

import os
import pickle
import re
import runpy
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import hostile_calls  # noqa: F401
import hostile_inputs  # noqa: F401
import hostile_models
import hostile_places  # noqa: F401
import hostile_shards  # noqa: F401
import hostile_weights  # noqa: F401
import pytest
from hostile_ground import CASES, Case, Ground, picture


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.name}-{case.verb}")
def test_it_is_refused(case: Case, ground, refused, monkeypatch) -> None:
    real = shutil.disk_usage
    monkeypatch.setattr(  # a terabyte is too much for any machine
        shutil, "disk_usage", lambda path: real(path)._replace(free=min(real(path).free, 10**11))
    )
    more = case.spoil(ground)
    arguments = ground.command(case.verb) + (more if isinstance(more, list) else [])
    line = refused(ground, *arguments, is_midway=case.is_midway)
    assert re.search(case.word, line), line


@pytest.mark.parametrize("verb", ["inspect", "calibrate", "prune", "verify", "evaluate"])
def test_valid_input_is_not_refused(verb, ground, ditprune) -> None:
    """What the cases spoil is whole before."""
    code, _, err = ditprune(*ground.command(verb))
    assert code == 0, err


@pytest.mark.parametrize("verb", ["inspect", "calibrate", "prune", "evaluate"])
def test_nothing_that_only_lies_in_a_model_is_run(verb, ground, ditprune, monkeypatch) -> None:
    hostile_models.inert(ground)
    monkeypatch.chdir(ground.root)
    # An evaluation writes the card of what it measured, and nothing else there.
    card = {ground.pruned / name for name in ("README.md", "ditprune.png")}
    own = [ground.out, *(card if verb == "evaluate" else ())]
    before = picture(ground.root, own)
    code, _, err = ditprune(*ground.command(verb))
    assert code == 0, err
    assert not ground.mark.exists()
    assert picture(ground.root, own) == before


@pytest.mark.parametrize("kind", ["pickle", "code"])
def test_the_payloads_are_live(kind, ground) -> None:
    file = ground.outside / "payload.py"
    getattr(ground, kind)(file)
    if kind == "code":
        runpy.run_path(str(file))
    else:
        pickle.loads(file.read_bytes()).close()
    assert ground.mark.exists()


@pytest.fixture
def disk(ground) -> Iterator[Callable[[str], None]]:
    """Puts a small disk of its own in the place of OUT."""
    if os.sysconf("SC_PAGE_SIZE") != 4096:
        pytest.skip("the sizes are of disks with pages of 4 KiB")
    place = ground.out.parent
    mounted = []

    def mount(options: str) -> None:
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        except FileNotFoundError:
            pytest.skip("no mount command here")
        if done.returncode:
            pytest.skip(f"mount is refused here: {done.stderr.strip()}")
        mounted.append(place)

    yield mount
    for folder in mounted:
        subprocess.run(["umount", str(folder)], check=True)


def work_of(ground: Ground, verb: str) -> tuple[Path, ...]:
    """What calibrate did may stay beside OUT, and what evaluate drew in it."""
    kept = {"calibrate": (ground.out.with_name(".out.work"),), "evaluate": (ground.out,)}
    return kept.get(verb, ())


DISKS = {
    "read-only": ("ro", "Read-only|no permission"),
    "full": ("size=4k", "no space left|make room"),
    "without room for names": ("size=4m,nr_inodes=1", "no space left"),
}


@pytest.mark.parametrize("verb", ["prune", "calibrate", "evaluate"])
@pytest.mark.parametrize("kind", DISKS)
def test_a_disk_that_takes_nothing(kind, verb, ground, disk, refused) -> None:
    options, word = DISKS[kind]
    disk(options)
    line = refused(ground, *ground.command(verb), is_midway=True, leave_out=work_of(ground, verb))
    assert re.search(word, line), line
    assert not (ground.out / "results.json").exists()


@pytest.mark.parametrize("room", [0, 8192, 40960])
def test_a_disk_that_is_full_midway_through_a_copy(room, ground, disk, refused) -> None:
    """By the sum of its files the copy fits; with blocks, journal and manifest it does not."""
    num_bytes = sum(f.stat().st_size for f in ground.model.rglob("*") if f.is_file())
    disk(f"size={num_bytes // 4096 * 4096 + 4096 + room}")
    line = refused(ground, *ground.command("prune"), is_midway=True)
    assert re.search("no space left", line), line


@pytest.mark.parametrize("size", ["8k", "16k", "32k"])
def test_a_disk_that_is_full_midway_through_a_calibration(size, ground, disk, refused) -> None:
    disk(f"size={size}")
    work = work_of(ground, "calibrate")
    line = refused(ground, *ground.command("calibrate"), is_midway=True, leave_out=work)
    assert re.search("no space left", line), line
    assert not ground.out.exists()
