"""Several processes share the blocks of a denoiser: whatever their number, OUT is the same."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ditprune.calibration.calibrate import calibrate_denoiser
from ditprune.calls import Call
from ditprune.checkpoints.calibration_set import save_calibration_set
from ditprune.checkpoints.statistics_file import save_statistics
from ditprune.cli.main import run
from folders import add_denoiser, files_of, save_pipeline
from process_groups import ENVIRONMENT, Group, needs_fork, run_groups

# A member ends where DIES says: its rank, and which step of what.
PREPARE = """
from ditprune.pruning.update.blockwise import run as runs
def told(self, what, num_done, tell=runs.BlockRun.told):
    if os.environ.get("DIES") == f"{self.worker.rank} {what} {num_done}":
        os.kill(os.getpid(), 9)
    tell(self, what, num_done)
runs.BlockRun.told = told
"""


@pytest.fixture(scope="module")
def command(tiny_dit, batches, tmp_path_factory) -> Callable[..., list[str]]:
    """The words that prune a pipeline with two denoisers into a folder."""
    folder = tmp_path_factory.mktemp("shared")
    model, both = folder / "model", {"transformer": tiny_dit(), "transformer_2": tiny_dit(1)}
    save_pipeline(both["transformer"], model)
    add_denoiser(model, both["transformer_2"])
    stats, calls = folder / "stats.safetensors", folder / "calls"
    parts = {name: calibrate_denoiser(dit, batches(dit)) for name, dit in both.items()}
    save_statistics(parts, stats)
    made = [Call.of(batch) for batch in batches(both["transformer"])]
    save_calibration_set(
        [Call(call.args, call.kwargs, None, name) for name in both for call in made], {}, calls
    )

    def words(out: Path, *more: str) -> list[str]:
        return [
            "prune", str(model), "-o", str(out), "--statistics", str(stats),
            "--calibration-set", str(calls), "--gram-memory", "20KB",
            *(more or ("--preset", "fast")),
        ]  # fmt: skip

    return words


@pytest.fixture(scope="module")
def alone(command, tmp_path_factory) -> dict[str, bytes]:
    """What a process alone writes."""
    out = tmp_path_factory.mktemp("alone") / "out"
    assert run([*command(out), "--device", "cpu"]) == 0
    return files_of(out)


@needs_fork
def test_one_two_and_three_processes_write_the_same_bytes(command, alone, tmp_path) -> None:
    """Also where one of them is killed, and the same command is given again."""
    trains = ("--preset", "best", "--refinement", "distill,num_steps=4")
    assert run([*command(tmp_path / "t1", *trains), "--device", "cpu"]) == 0
    groups = [
        Group(command(tmp_path / "t2", *trains), 2),
        Group(command(tmp_path / "2"), 2),
        Group(command(tmp_path / "3"), 3, {"DIES": "2 measuring blocks 1"}),
        Group(command(tmp_path / "3"), 3),
    ]
    ended = run_groups(groups, prepare=PREPARE)
    codes = [[0, 0], [0, 0], [2, 2, -signal.SIGKILL], [0, 0, 0]]
    assert [group.codes for group in ended] == codes, [group.err for group in ended]
    assert "error: process 2 of 3 (id " in ended[2].err
    assert files_of(tmp_path / "2") == files_of(tmp_path / "3") == alone
    assert files_of(tmp_path / "t1") == files_of(tmp_path / "t2")
    left = {path.name for path in Path(tmp_path).iterdir() if path.name.startswith(".")}
    assert left == set()


def test_two_machines_share_a_folder(command, alone, tmp_path) -> None:
    """Two agents of torchrun on this one; what they write is what a process alone writes."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    agents = [
        subprocess.Popen(
            [
                sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--node-rank",
                str(rank), "--master-addr", "127.0.0.1", "--master-port", str(port),
                "-m", "ditprune", *command(tmp_path / "out"),
            ],
            env=os.environ | ENVIRONMENT, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL,
        )
        for rank in range(2)
    ]  # fmt: skip
    told = [agent.communicate(timeout=300)[1].decode() for agent in agents]
    assert [agent.returncode for agent in agents] == [0, 0], told
    assert files_of(tmp_path / "out") == alone
