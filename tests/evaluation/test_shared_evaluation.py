"""Several processes share the images and the calls of one evaluation; the numbers are the same."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ditprune.checkpoints.locate import locate
from ditprune.method.words import build
from ditprune.pruning.loop import prune_checkpoint

OPTIONS = [
    "--num-images", "7", "--batch-size", "2", "--num-held-out", "20", "--num-inference-steps", "2",
    "--guidance-scale", "1.5",
]  # fmt: skip


def evaluate(num_processes: int, dense: Path, pruned: Path, out: Path) -> dict[str, Any]:
    launcher = [
        "-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1",
        "--nproc-per-node",
    ]  # fmt: skip
    start = [] if num_processes == 1 else [*launcher, str(num_processes)]
    done = subprocess.run(
        [sys.executable, *start, "-m", "ditprune", "evaluate", dense, pruned, "-o", out, *OPTIONS],
        env={**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
        capture_output=True, text=True, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("results.json") == 1  # one of them speaks
    return json.loads((out / "results.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def alone(tiny_pipeline, tiny_stats, tmp_path_factory) -> Path:
    """A pruned model, and in `one` what a single process says of it."""
    at = tmp_path_factory.mktemp("alone")
    dense = locate(str(tiny_pipeline))
    prune_checkpoint(dense, at / "pruned", {"any": tiny_stats}, build(sparsity=0.6))
    evaluate(1, tiny_pipeline, at / "pruned", at / "one")
    return at


@pytest.mark.parametrize("num_processes", [2, 3])
def test_the_numbers_do_not_depend_on_the_number_of_processes(
    num_processes, tiny_pipeline, alone, tmp_path
) -> None:
    one = json.loads((alone / "one" / "results.json").read_text(encoding="utf-8"))
    several = evaluate(num_processes, tiny_pipeline, alone / "pruned", tmp_path / "several")
    assert several["protocol"] == one["protocol"]
    for a, b in zip(one["models"], several["models"], strict=True):
        for row in (a, b):
            assert row["accounting"].pop("seconds_per_image") > 0
        mine, theirs = a["metrics"].pop("relative_error"), b["metrics"].pop("relative_error")
        assert mine == (theirs and pytest.approx(theirs, rel=1e-9))
        assert a == b
    assert (alone / "one" / "grid.png").read_bytes() == (
        tmp_path / "several" / "grid.png"
    ).read_bytes()
    assert several["gallery"] == one["gallery"]
