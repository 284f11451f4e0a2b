"""A calibration killed at any moment: the same command goes on, to an uninterrupted run's bytes."""

from __future__ import annotations

import os
import random
import re
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from ditprune.calibration import collect as collect_module
from ditprune.cli.main import run
from ditprune.writing.files import installed_versions
from folders import edit_json, edit_tensors, files_of, save_one_block
from killed import OUT_EXISTS, Server, serving, trials

# What was observed is kept after every unit, so that there is something to go on from.
PREPARE = """
import diffusers
diffusers.DiTPipeline, diffusers.AutoencoderKL, diffusers.DDIMScheduler
from ditprune.calibration import observe_set
observe_set._SAVE_EVERY_S = 0
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """Where all killed runs write, and nothing else lies."""
    return tmp_path_factory.mktemp("killed")


@pytest.fixture(scope="module")
def server(place) -> Iterator[Server]:
    with serving(place, PREPARE) as server:
        yield server


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """A pipeline of one small block, for many small units."""
    return save_one_block(tmp_path_factory.mktemp("resume") / "model")


def command(model: Path, out: Path, num_samples: int = 40, kept: Path | None = None) -> list[Any]:
    line: list[Any] = ["calibrate", model, "-o", out, "--num-samples", num_samples]
    line += ["--batch-size", 2, "--num-inference-steps", 4, "--guidance-scale", 1]
    return line + ([] if kept is None else ["--calibration-set", kept])


def states(folder: Path) -> dict[str, tuple[int, int]]:
    """Which file each unit below a folder is, and when it was written."""
    return {
        unit.name: (unit.stat().st_ino, unit.stat().st_mtime_ns)
        for unit in folder.rglob("unit-*")
    }  # fmt: skip


@pytest.fixture(scope="module")
def whole(model, server, place) -> tuple[bytes, dict[str, bytes], float]:
    """What an uninterrupted run writes, its calibration set, and the seconds it takes."""
    out, kept = place / "whole", place / "whole_set"
    line = command(model, out, kept=kept)
    server.start(line)  # the first run of all is slower
    assert server.finish()[0] == 0
    shutil.rmtree(kept)
    begin = time.monotonic()
    server.start([*line, "--overwrite"])
    assert server.finish()[0] == 0
    elapsed_s = time.monotonic() - begin
    result = out.read_bytes(), files_of(kept), elapsed_s
    out.unlink()
    shutil.rmtree(kept)
    return result


def test_twelve_kills_at_random_moments(model, server, whole, place) -> None:
    expected, set_expected, elapsed_s = whole
    draw = random.Random(0)
    clear(place)
    out, kept = place / "out", place / "set"
    seen: Counter[str] = Counter()
    for trial in trials(12, seen, {"killed": 7, "killed between units": 3}):
        # Spread over the run, its start and its end; a run that goes on may be killed again.
        line = command(model, out, kept=kept if trial // 4 % 2 else None)
        before = states(place)
        pid = server.start(line)
        time.sleep(elapsed_s * ((trial * 7) % 12 + draw.random()) / 12)
        with suppress(ProcessLookupError):  # it was faster
            os.kill(pid, 9)
        was_killed = server.finish()[0] == -9
        seen["killed"] += was_killed
        left = states(place)
        if was_killed and not out.exists():
            assert left.items() >= before.items(), "a unit was sampled again"
        seen["killed between units"] += 0 < len(left) < 20
        elapsed_s *= 0.9 if not was_killed else 1 if left or out.exists() else 1.1
        if trial % 4 == 1:
            continue
        finish_and_check(server, line, out, expected, place)
        if kept.exists():
            assert files_of(kept) == set_expected
            assert states(kept).items() >= left.items(), "a unit was sampled again"
            shutil.rmtree(kept)
        out.unlink()
        assert list(place.iterdir()) == []


def clear(place: Path) -> None:
    """Whatever a killed run, or a test that failed, left there."""
    shutil.rmtree(place)
    place.mkdir()


def finish_and_check(
    server: Server, line: list[Any], out: Path, expected: bytes, place: Path
) -> None:
    """The same command again ends well; after its last rename it says that OUT exists."""
    was_done = out.exists() and not (place / f".{out.name}.work").exists()
    assert not out.exists() or out.read_bytes() == expected
    server.start(line)
    assert server.finish()[0] == (OUT_EXISTS if was_done else 0)
    assert out.read_bytes() == expected
    # A run that was killed at its end leaves its locks' empty files, which nothing holds; one that
    # goes on with a whole set of calls takes no lock of the set.
    for lock in place.glob(".*.lock" if was_done else ".set.lock"):
        assert lock.stat().st_size == 0
        lock.unlink()
    assert [file.name for file in place.iterdir() if file.name.startswith(".")] == []


def test_a_kill_before_each_of_the_first_steps_with_a_set_of_its_own(model, server, place) -> None:
    """The set changes the beginning only; the rest is in `test_files_crossings.py`."""
    clear(place)
    out, kept = place / "out", place / "set"
    line = command(model, out, num_samples=4, kept=kept)
    server.start(line)
    assert server.finish()[0] == 0
    expected = out.read_bytes()
    for step in (1, 2, 3, 4, 6, 8, 10, 12, 13):
        clear(place)
        server.start(line, last_step=step)
        assert server.finish()[0] == -9
        finish_and_check(server, line, out, expected, place)
        assert {path.name for path in place.iterdir()} == {"out", "set"}


@pytest.fixture
def interrupted(model, tmp_path, monkeypatch) -> Callable[..., list[Any]]:
    """Stops a calibration with Ctrl-C before its third unit is sampled; gives its command."""

    def stop(own_model: Path = model, kept: Path | None = None) -> list[Any]:
        original, calls = collect_module.sample_unit, [0]

        def sample(*args: Any) -> Any:
            calls[0] += 1
            if calls[0] == 3:
                raise KeyboardInterrupt
            return original(*args)

        line = command(own_model, tmp_path / "out", num_samples=10, kept=kept)
        with monkeypatch.context() as patch:
            patch.setattr(collect_module, "sample_unit", sample)
            assert cli(line) == 130
        return line

    return stop


def cli(line: list[Any]) -> int:
    return run([str(word) for word in line])


def test_ctrl_c_says_how_to_go_on_and_the_next_run_does_the_rest(
    interrupted, model, tmp_path, capsys, monkeypatch
) -> None:
    line = interrupted()
    assert "stopped; run the same command again to go on" in capsys.readouterr().err
    sampled: list[int] = []
    original = collect_module.sample_unit

    def note(pipeline: Any, sampling: Any, unit: int, *args: Any) -> Any:
        sampled.append(unit)
        return original(pipeline, sampling, unit, *args)

    monkeypatch.setattr(collect_module, "sample_unit", note)
    assert cli(line) == 0
    assert sampled == [2, 3, 4]
    assert cli(command(model, tmp_path / "again", num_samples=10)) == 0
    assert (tmp_path / "out").read_bytes() == (tmp_path / "again").read_bytes()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["again", "out"]


def other_weight(model: Path) -> None:
    (shard,) = (model / "transformer").glob("*.safetensors")
    edit_tensors(shard, lambda all_: all_["transformer_blocks.0.attn1.to_q.weight"].add_(1))


def other_decoder(model: Path) -> None:
    (shard,) = (model / "vae").glob("*.safetensors")
    edit_tensors(shard, lambda all_: all_["decoder.conv_in.weight"].add_(1))


def other_config(model: Path) -> None:
    edit_json(model / "scheduler" / "scheduler_config.json", lambda it: it.update(beta_end=0.03))


CHANGES: dict[str, tuple[Any, str]] = {
    "seed": (["--seed", 1], r"sampling\.seed: 0 → 1"),
    "steps": (["--num-inference-steps", 3], r"sampling\.num_inference_steps: 4 → 3"),
    "samples": (["--num-samples", 12], r"sampling\.num_samples: 10 → 12"),
    "numbers": (["--dtype", "bfloat16"], r"placement\.dtype: float32 → bfloat16"),
    "weight": (other_weight, r"weights\.transformer: \w+ → \w+"),
    "decoder": (other_decoder, r"files: \w+…? → \w+…?"),
    "config": (other_config, r"configuration: \w+…? → \w+…?"),
    "version": ("0.0", r"versions\.torch: [\d.+a-z]+ → 0\.0"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_run_with_anything_else_is_refused_by_what_differs(
    change, interrupted, model, tmp_path, capsys, monkeypatch
) -> None:
    own = Path(shutil.copytree(model, tmp_path / "model"))
    line, (made, says) = interrupted(own), CHANGES[change]
    if isinstance(made, list):
        line += made
    elif isinstance(made, str):
        versions = {**installed_versions(), "torch": made}
        monkeypatch.setattr("ditprune.calibration.sample.installed_versions", lambda: versions)
    else:
        made(own)
    before = files_of(tmp_path)
    capsys.readouterr()
    assert cli(line) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert re.search(says, message), message
    assert "--overwrite to drop it" in message
    assert files_of(tmp_path) == before
    assert cli([*line, "--overwrite"]) == 0
    assert sorted(file.name for file in tmp_path.iterdir()) == ["model", "out"]
    line[line.index("-o") + 1] = tmp_path / "again"
    assert cli(line) == 0
    assert (tmp_path / "out").read_bytes() == (tmp_path / "again").read_bytes()


def test_an_unfinished_set_is_refused_by_what_differs(interrupted, model, tmp_path, capsys) -> None:
    kept = tmp_path / "set"
    line = interrupted(kept=kept)
    shutil.rmtree(tmp_path / ".out.work")
    before = files_of(tmp_path)
    capsys.readouterr()
    assert cli([*line, "--seed", 1]) == 2
    message = capsys.readouterr().err
    assert f"{kept}: this calibration set is unfinished" in message
    assert "(sampling.seed: 0 → 1); give those again to finish it, or remove it" in message
    assert files_of(tmp_path) == before
    assert cli(line) == 0
