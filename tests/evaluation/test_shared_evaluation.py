"""Several processes share the images and the calls of one evaluation; the numbers are the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ditprune.checkpoints.locate import locate
from ditprune.cli.main import run
from ditprune.method.words import build
from ditprune.pruning.loop import prune_checkpoint
from process_groups import Group, needs_fork, run_groups

OPTIONS = [
    "--num-images", "7", "--batch-size", "2", "--num-held-out", "20", "--num-inference-steps", "2",
    "--guidance-scale", "1.5",
]  # fmt: skip


def results(out: Path) -> dict[str, Any]:
    return json.loads((out / "results.json").read_text(encoding="utf-8"))


@needs_fork
def test_the_numbers_do_not_depend_on_the_number_of_processes(
    tiny_pipeline, tiny_stats, tmp_path
) -> None:
    pruned, alone = tmp_path / "pruned", tmp_path / "alone"
    prune_checkpoint(locate(str(tiny_pipeline)), pruned, {"any": tiny_stats}, build(sparsity=0.6))
    words = ["evaluate", str(tiny_pipeline), str(pruned), *OPTIONS, "-o"]
    assert run([*words, str(alone)]) == 0
    shared = {world: tmp_path / f"of {world}" for world in (2, 3)}
    ended = run_groups([Group([*words, str(out)], world) for world, out in shared.items()])
    for (world, out), group in zip(shared.items(), ended, strict=True):
        assert group.codes == [0] * world, group.err
        assert group.out.count("results.json") == 1  # one of them speaks
        assert_same(results(alone), results(out))
        assert (out / "grid.png").read_bytes() == (alone / "grid.png").read_bytes()


def assert_same(one: dict[str, Any], several: dict[str, Any]) -> None:
    """All but the time that it took, and the last digits of sums."""
    assert several["protocol"] == one["protocol"]
    for a, b in zip(one["models"], several["models"], strict=True):
        for row in (a, b):
            assert row["accounting"].pop("seconds_per_image") > 0
            row["accounting"].pop("peak_memory_bytes")
        mine, theirs = a["metrics"].pop("relative_error"), b["metrics"].pop("relative_error")
        assert mine == (theirs and pytest.approx(theirs, rel=1e-9))
        assert a == b
    assert several["gallery"] == one["gallery"]
