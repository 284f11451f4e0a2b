"""A prune killed at any moment: the same command goes on, and OUT is an uninterrupted run's."""

from __future__ import annotations

import json
import os
import random
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from ditprune.checkpoints.locate import locate
from ditprune.errors import OutputError
from ditprune.method.words import build
from ditprune.pruning import loop as prune_module
from ditprune.pruning.loop import prune_checkpoint
from ditprune.writing.files import installed_versions
from folders import add_denoiser, edit_json, files_of, save_one_block, save_pipeline
from killed import OUT_EXISTS, Server, serving, trials


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[Server]:
    with serving(tmp_path_factory.getbasetemp()) as server:
        yield server


def big_dit(seed: int) -> torch.nn.Module:
    """Slow enough to be killed midway."""
    from diffusers import DiTTransformer2DModel

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return DiTTransformer2DModel(
            num_attention_heads=6, attention_head_dim=64, num_layers=3, in_channels=4,
            out_channels=4, sample_size=8, patch_size=2, num_embeds_ada_norm=10,
        )  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """A pipeline of two denoisers in several shards."""
    folder = save_pipeline(
        big_dit(0), tmp_path_factory.mktemp("resume") / "model", max_shard_size="9MB"
    )
    add_denoiser(folder, big_dit(1), max_shard_size="20MB")
    return folder


def command(model: Path, out: Path) -> list[object]:
    return ["prune", model, "-o", out, "--saliency", "magnitude"]


@pytest.fixture(scope="module")
def whole(model, server) -> tuple[dict[str, bytes], float]:
    """What an uninterrupted run writes, and the seconds it takes."""
    out = model.parent / "whole"
    begin = time.monotonic()
    server.start(command(model, out))
    assert server.finish()[0] == 0
    return files_of(out), time.monotonic() - begin


def test_eight_kills_at_random_moments(model, server, whole, tmp_path) -> None:
    """By turns into nothing and over an empty folder."""
    expected, elapsed_s = whole
    draw, out = random.Random(0), tmp_path / "out"
    seen: Counter[str] = Counter()
    for trial in trials(8, seen, {"killed": 4, "killed midway": 3}):
        overwrite = trial // 4 % 2 == 1
        line = command(model, out) + (["--overwrite"] if overwrite else [])
        if overwrite and not out.exists():
            out.mkdir()
        # Spread over the run, its start and its end; a run that goes on may be killed again.
        pid = server.start(line)
        time.sleep(elapsed_s * (trial * 3 % 8 + draw.random()) / 8)
        with suppress(ProcessLookupError):  # it was faster
            os.kill(pid, 9)
        code = server.finish()[0]
        seen["killed"] += code == -9
        is_midway = (tmp_path / ".out.part").exists()
        seen["killed midway"] += is_midway
        assert not out.exists() or files_of(out) in ({}, expected)
        if code == 0:
            elapsed_s /= 2  # the first run was slower than this one; aim earlier
        elif trial % 4 == 2 and is_midway:
            elapsed_s *= 1.2
            continue
        else:
            elapsed_s *= 1 if out.exists() or is_midway else 1.2
            was_done = list(tmp_path.iterdir()) == [out] and files_of(out) == expected
            server.start(line)
            assert server.finish()[0] == (OUT_EXISTS if was_done and not overwrite else 0)
        assert files_of(out) == expected
        assert [path.name for path in tmp_path.iterdir()] == ["out"]
        shutil.rmtree(out)


@pytest.fixture
def tiny(tiny_pipeline, tmp_path) -> tuple[Path, dict[str, bytes]]:
    """A small model, and what pruning makes of it."""
    out = tmp_path / "expected"
    prune_checkpoint(locate(str(tiny_pipeline)), out, None, build(saliency="magnitude"))
    return tiny_pipeline, files_of(out)


def test_a_kill_before_steps_of_the_file_system_where_out_is_replaced(
    server, tmp_path_factory, tmp_path
) -> None:
    """The last renames among them: each state they pass through is left behind once."""
    folder = save_one_block(tmp_path_factory.mktemp("one") / "model")
    place, old, new = tmp_path / "place", tmp_path / "old", tmp_path / "new"
    for result, sparsity in ((old, 0.1), (new, 0.5)):
        recipe = build(saliency="magnitude", sparsity=sparsity)
        prune_checkpoint(locate(str(folder)), result, None, recipe)
    before, expected = files_of(old), files_of(new)
    out = place / "out"
    line = [*command(folder, out), "--overwrite"]

    def prepare() -> None:
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        shutil.copytree(old, out)

    prepare()
    server.start(line, last_step=0)
    code, num_steps = server.finish()
    assert code == 0
    assert num_steps > 40
    after_rename = False
    at_the_end = range(num_steps - 16, num_steps + 1)
    for step in (1, 2, 3, *range(4, at_the_end[0], 16), *at_the_end):
        prepare()
        server.start(line, last_step=step)
        assert server.finish()[0] == -9
        assert not out.exists() or files_of(out) in (before, expected)
        after_rename |= out.exists() and files_of(out) == expected
        server.start(line)
        assert server.finish()[0] == 0, step
        assert files_of(out) == expected, step
        assert list(place.iterdir()) == [out], step
    assert after_rename


def interrupted(folder: Path, out: Path, monkeypatch: pytest.MonkeyPatch, after: int = 10) -> None:
    """A run that Ctrl-C stops in its target number `after`."""
    original, calls = prune_module.prune_weight_, [0]

    def stop(*args: Any) -> Any:
        calls[0] += 1
        if calls[0] == after:
            raise KeyboardInterrupt
        return original(*args)

    with monkeypatch.context() as patch:
        patch.setattr(prune_module, "prune_weight_", stop)
        with pytest.raises(KeyboardInterrupt):
            prune_checkpoint(locate(str(folder)), out, None, build(saliency="magnitude"))


def count_targets(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the targets that are pruned from now on."""
    original, seen = prune_module.prune_weight_, []

    def note(target: Any, *args: Any) -> Any:
        seen.append(target.name)
        return original(target, *args)

    monkeypatch.setattr(prune_module, "prune_weight_", note)
    return seen


def test_an_interrupt_keeps_the_work_and_the_next_run_does_the_rest(
    tiny, tmp_path, monkeypatch
) -> None:
    folder, expected = tiny
    out = tmp_path / "out"
    interrupted(folder, out, monkeypatch)
    assert not out.exists()
    seen, reported = count_targets(monkeypatch), []
    outcomes = prune_checkpoint(
        locate(str(folder)), out, None, build(saliency="magnitude"),
        progress=lambda what, done, total: reported.append((what, done, total)),
    )  # fmt: skip
    assert len(seen) == 21 - 9
    total = reported[-1][2]
    num_written = sum(what == "writing tensors" for what, *_ in reported)
    assert 12 <= num_written < total
    assert reported[-num_written:] == [
        ("writing tensors", n, total) for n in range(total - num_written + 1, total + 1)
    ]
    assert {what for what, *_ in reported[:-num_written]} == {"checking what is done"}
    assert files_of(out) == expected
    assert list(outcomes["transformer"].targets) == list(
        json.loads(expected["transformer/ditprune.json"])["targets"]
    )


@pytest.mark.parametrize("spoil", ["bit", "shard", "journal"])
def test_what_is_not_as_recorded_is_done_again(spoil, tiny, tmp_path, monkeypatch) -> None:
    folder, expected = tiny
    out, part = tmp_path / "out", tmp_path / ".out.part" / "transformer"
    interrupted(folder, out, monkeypatch)
    journal = tmp_path / ".out.journal"
    records = [json.loads(line) for line in journal.read_text(encoding="utf-8").splitlines()]
    done = [r["tensor"].removesuffix(".weight") for r in records[1:] if r.get("note")]
    assert len(done) == 9
    (shard,) = part.glob("*.safetensors")
    if spoil == "bit":
        from ditprune.checkpoints.weights import Weights

        entry = Weights(folder / "transformer").entries[f"{done[4]}.weight"]
        raw = bytearray(shard.read_bytes())
        raw[entry.offset + 100] ^= 1
        shard.write_bytes(raw)
    elif spoil == "shard":
        shard.unlink()
    else:  # as a kill tears it: half of its last line
        journal.write_bytes(journal.read_bytes()[:-30])
    seen = count_targets(monkeypatch)
    prune_checkpoint(locate(str(folder)), out, None, build(saliency="magnitude"))
    again = {"bit": {done[4]}, "shard": set(done)}.get(spoil)
    assert again is None or again == set(seen) & set(done)
    assert files_of(out) == expected


CHANGES = {
    "recipe": r"recipe\.sparsity: 0\.5 → 0\.25",
    "weights": r"denoisers\.transformer\.fingerprint: \w+ → \w+",
    "touched weights": r"files: \w+…? → \w+…?",
    "config": r"denoisers\.transformer\.config_sha256: \w+…? → \w+…?",
    "statistics": r"denoisers\.transformer\.statistics: None → \w+…?",
    "version": r"versions\.torch: [\d.+a-z]+ → 0\.0",
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_run_with_anything_else_is_refused(
    change, own_pipeline, tiny_stats, tmp_path, monkeypatch
) -> None:
    out = tmp_path / "out"
    interrupted(own_pipeline, out, monkeypatch)
    before = files_of(tmp_path)
    words, stats, inside = {}, None, own_pipeline / "transformer"
    shard = next(inside.glob("*.safetensors"))
    if change == "recipe":
        words = {"sparsity": 0.25}
    elif change == "weights":
        raw = bytearray(shard.read_bytes())
        raw[-400_000:] = bytes(400_000)
        shard.write_bytes(raw)
    elif change == "touched weights":
        os.utime(shard, (1, 1))
    elif change == "config":
        edit_json(inside / "config.json", lambda config: config.update(norm_eps=1e-3))
    elif change == "statistics":
        stats = {"transformer": tiny_stats}
    else:
        versions = {**installed_versions(), "torch": "0.0"}
        monkeypatch.setattr("ditprune.pruning.job.installed_versions", lambda: versions)
    with pytest.raises(OutputError, match=CHANGES[change]) as caught:
        prune_checkpoint(
            locate(str(own_pipeline)), out, stats, build(saliency="magnitude", **words)
        )
    assert "overwrite=True" in str(caught.value)
    now = files_of(tmp_path)
    assert {n: r for n, r in now.items() if n.startswith(".out")} == {
        n: r for n, r in before.items() if n.startswith(".out")
    }
    prune_checkpoint(
        locate(str(own_pipeline)), out, stats, build(saliency="magnitude", **words), overwrite=True
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "out"]
