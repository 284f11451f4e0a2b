"""Every verb that writes × killed, two at once, a full disk, OUT a link: whole, or as it was.

A verb is a line of the command line and the files that it leaves. Each crossing is one function
over all of them.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ditprune.cli.main import run
from ditprune.writing.lock import locked, locked_folder
from folders import files_of, save_one_block
from killed import OUT_EXISTS, Server, serving

# What is imported late is so once; what was observed is kept after every unit.
PREPARE = """
import matplotlib.backends.backend_svg, matplotlib.pyplot
import ditprune.evaluation.evaluate, ditprune.reproduce.run, ditprune.reporting.formats
from ditprune.calibration import observe_set
diffusers.DiTPipeline, diffusers.AutoencoderKL, diffusers.DDIMScheduler
observe_set._SAVE_EVERY_S = 0
"""
SHORT = ("--num-inference-steps", 1, "--guidance-scale", 1)
EVALUATION = ("--num-images", 2, "--batch-size", 1, "--num-held-out", 1, "--metrics", "ssim")


@dataclass(frozen=True)
class Verb:
    """A command that writes.

    Args:
        line: its words; names of inputs stand for their paths, OUT for the output.
        kind: a `file`, a `folder` that appears whole, or a folder of `results`.
        between, at_the_end: how many kills there are midway, and before its last steps.
    """

    line: tuple[object, ...]
    kind: str
    between: int = 1
    at_the_end: int = 3


VERBS = {
    "calibrate": Verb(
        ("calibrate", "MODEL", "-o", "OUT", "--num-samples", 2, "--batch-size", 1, *SHORT),
        "file", 2, 6,
    ),
    "prune": Verb(("prune", "MODEL", "-o", "OUT", "--saliency", "magnitude"), "folder", 3, 5),
    "prune that updates": Verb(
        ("prune", "MODEL", "-o", "OUT", "--statistics", "STATISTICS", "--calibration-set", "CALLS",
         "--reconstruction", "obs"), "folder",
    ),
    "mask extract": Verb(("mask", "extract", "PRUNED", "-o", "OUT"), "file", 0, 4),
    "mask apply": Verb(("mask", "apply", "MODEL", "MASK", "-o", "OUT"), "folder"),
    "convert to compact": Verb(("convert", "PRUNED", "--to", "compact", "-o", "OUT"), "folder"),
    "convert to dense": Verb(("convert", "COMPACT", "--to", "dense", "-o", "OUT"), "folder"),
    "evaluate": Verb(
        ("evaluate", "MODEL", "PRUNED", "-o", "OUT", *EVALUATION, *SHORT), "results", 1, 2
    ),
    "report": Verb(("report", "RESULTS", "-o", "OUT"), "file", 0, 2),
    "reproduce": Verb(
        ("reproduce", "statistics", "MODEL", "-o", "OUT", "--num-samples", 2, "--steps", 1),
        "results", 1, 2,
    ),
}  # fmt: skip
every_verb = pytest.mark.parametrize("verb", VERBS)


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """Where the runs write, and nothing else lies."""
    return tmp_path_factory.mktemp("crossings") / "place"


@pytest.fixture(scope="module")
def server(place) -> Iterator[Server]:
    with serving(place, PREPARE) as server:
        yield server


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> dict[str, Path]:
    """A pipeline of one small block, and what the verbs make of it."""
    there = tmp_path_factory.mktemp("inputs")
    names = ("STATISTICS", "CALLS", "PRUNED", "MASK", "COMPACT", "RESULTS")
    paths = {"MODEL": save_one_block(there / "model")}
    paths |= {name: there / name.lower() for name in names}
    calls = ["--calibration-set", paths["CALLS"]]
    made = {"calibrate": ("STATISTICS", calls), "mask extract": ("MASK", []),
            "convert to compact": ("COMPACT", []), "evaluate": ("RESULTS", [])}  # fmt: skip
    ok([*line_of(VERBS["prune"], paths, paths["PRUNED"]), "--sparsity", 0.8])
    for verb, (name, more) in made.items():
        ok([*line_of(VERBS[verb], paths, paths[name]), *more])
    return paths


def ok(line: list[object]) -> None:
    assert run([str(word) for word in line]) == 0


def line_of(verb: Verb, inputs: dict[str, Path], out: Path) -> list[object]:
    return [({**inputs, "OUT": out}.get(str(word), word)) for word in verb.line]


def result_of(out: Path) -> Any:
    """The bytes of what was written; of results, which hold seconds and peaks, the numbers."""
    if out.is_file():
        return out.read_bytes()
    results = sorted(out.rglob("results.json"))
    if not results:
        return files_of(out)
    (content,) = (json.loads(file.read_text(encoding="utf-8")) for file in results)
    for model in content.get("models", []):
        model["accounting"].pop("seconds_per_image"), model.pop("warnings")
        model["accounting"].pop("peak_memory_bytes")
    content.pop("command")
    return content


def clear(place: Path) -> Path:
    """Whatever a run left there is removed; where OUT will be."""
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    return place / "out"


def leftovers(place: Path) -> list[str]:
    """What lies beside the output, or in it, and is no result."""
    beside = [path.name for path in place.iterdir() if path.name != "out"]
    return [*beside, *(path.name for path in place.glob("out/.lock"))]


@pytest.fixture(scope="module")
def whole(inputs, server, place) -> Callable[[str], tuple[Any, int]]:
    """What an uninterrupted run of a verb leaves, and in how many steps of the file system."""
    known: dict[str, tuple[Any, int]] = {}

    def measured(verb: str) -> tuple[Any, int]:
        if verb not in known:
            out = clear(place)
            server.start(line_of(VERBS[verb], inputs, out), last_step=0)
            code, num_steps = server.finish()
            assert code == 0
            known[verb] = result_of(out), num_steps
        return known[verb]

    return measured


@every_verb
def test_killed_it_goes_on_to_the_same_bytes(verb, inputs, server, whole, place) -> None:
    expected, num_steps = whole(verb)
    count, end = VERBS[verb].between, VERBS[verb].at_the_end
    between = (num_steps * (n + 1) // (count + 1) for n in range(count))
    steps = {1, *between, *range(max(1, num_steps + 1 - end), num_steps + 1)}
    for step in sorted(steps):
        out = clear(place)
        line = line_of(VERBS[verb], inputs, out)
        server.start(line, last_step=step)
        assert server.finish()[0] in (0, -9), step  # 0 where it wrote in another order
        server.start(line)
        code = server.finish()[0]
        assert code == 0 or (code == OUT_EXISTS and VERBS[verb].kind == "file"), step
        assert result_of(out) == expected, step
        assert leftovers(place) == [], step


@every_verb
def test_of_two_at_once_the_second_is_refused(verb, inputs, server, whole, place, ditprune) -> None:
    expected, num_steps = whole(verb)
    out = clear(place)
    line = line_of(VERBS[verb], inputs, out)
    pid = server.start(line, last_step=max(2, num_steps * 2 // 3), how=signal.SIGSTOP)
    try:
        while Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "T":
            time.sleep(0.01)
        before = files_of(place)
        code, _, err = ditprune(*line)
        assert code == 2
        assert "another run is writing here; wait for its end" in err
        assert files_of(place) == before
    finally:
        os.kill(pid, signal.SIGCONT)
    assert server.finish()[0] == 0
    assert result_of(out) == expected
    assert leftovers(place) == []


def full(_number: int) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@every_verb
def test_a_full_disk_leaves_what_was(verb, inputs, place, ditprune, monkeypatch) -> None:
    out = clear(place)
    monkeypatch.setattr(os, "fsync", full)
    code, _, err = ditprune(*line_of(VERBS[verb], inputs, out))
    assert code == 2
    assert "no space left on the disk" in err.splitlines()[-1]
    assert files_of(place) == {}


@every_verb
def test_an_out_that_is_a_link_is_refused(verb, inputs, place, ditprune) -> None:
    """Of results, a file that they would replace."""
    out, precious = clear(place), place.parent / "precious"
    shutil.rmtree(precious, ignore_errors=True)
    precious.mkdir()
    (precious / "thesis.tex").write_text("years of work", encoding="utf-8")
    kind = VERBS[verb].kind
    link = out
    if kind == "results":
        inside = "statistics" if verb == "reproduce" else "."
        link = out / inside / "results.json"
        link.parent.mkdir(parents=True)
    link.symlink_to(precious if kind == "folder" else precious / "thesis.tex")
    line = line_of(VERBS[verb], inputs, out)
    has_overwrite = kind != "results" and verb != "report"
    code, _, err = ditprune(*line, *(["--overwrite"] if has_overwrite else []))
    assert code == 2, err
    assert str(link) in err
    assert link.is_symlink()
    assert files_of(precious) == {"thesis.tex": b"years of work"}


@pytest.mark.parametrize("why", ["another run", "a full disk", "a link"])
def test_timings_are_added_to_results_or_these_stay(
    why, inputs, place, ditprune, monkeypatch
) -> None:
    out = clear(place)
    file = Path(shutil.copytree(inputs["RESULTS"], out)) / "results.json"
    before = files_of(out)
    line = ("bench", inputs["PRUNED"], "--num-tokens", 4, "--time-limit", 0.01, "--out", file)
    with monkeypatch.context() as patch, ExitStack() as stack:
        if why == "another run":
            stack.enter_context(locked_folder(out))
        elif why == "a full disk":
            patch.setattr(os, "fsync", full)
        else:
            moved = file.rename(place / "elsewhere.json")
            file.symlink_to(moved)
        code, _, err = ditprune(*line)
        assert code == 2
        assert err.startswith("error: ")
    assert {name: text for name, text in files_of(out).items() if ".lock" not in name} == before
    if why != "a link":
        assert ditprune(*line)[0] == 0
        assert "bench" in json.loads(file.read_text(encoding="utf-8"))


def test_a_demo_ends_at_once_where_another_runs_or_a_link_lies(place, ditprune) -> None:
    out = clear(place)
    out.mkdir()
    with locked(out / "demo"):
        code, _, err = ditprune("demo", "-o", out, "--num-images", 1)
    assert code == 2
    assert "another run is writing here" in err
    (out / "results.json").symlink_to(place / "precious")
    code, _, err = ditprune("demo", "-o", out, "--num-images", 1)
    assert code == 2
    assert f"{out / 'results.json'}: " in err
    assert [path.name for path in place.rglob("*")] == ["out", "results.json"]
