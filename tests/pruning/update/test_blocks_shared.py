"""Several processes share the blocks of a denoiser: whatever their number, OUT is the same bytes.

One process imports everything once and forks the members of each group.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ditprune.calibration.calibrate import calibrate_denoiser
from ditprune.calls import Call
from ditprune.checkpoints.calibration_set import save_calibration_set
from ditprune.checkpoints.statistics_file import save_statistics
from folders import add_denoiser, files_of, save_pipeline

GROUPS = """
import json, os, signal, socket, sys
import accelerate, diffusers, torch.distributed.nn
diffusers.DiTTransformer2DModel, diffusers.DiTPipeline, diffusers.AutoencoderKL
from ditprune.cli.main import run
from ditprune.pruning.update.blockwise import run as runs
def told(self, what, num_done, tell=runs.BlockRun.told):
    if os.environ["DIES"] == f"{self.worker.rank} {what} {num_done}":
        os.kill(os.getpid(), signal.SIGKILL)
    tell(self, what, num_done)
runs.BlockRun.told = told
def member(rank, world, port, dies, arguments):
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1",
                   "MASTER_PORT": str(port), "DIES": dies}
    os._exit(run(arguments))
for world, dies, arguments in json.loads(sys.argv[1]):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    members = []
    for rank in range(world):
        members.append(os.fork())
        if not members[-1]:
            member(rank, world, port, dies, arguments)
    codes = [os.waitstatus_to_exitcode(os.waitpid(member, 0)[1]) for member in members]
    print(json.dumps(codes), flush=True)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_one_two_and_three_processes_write_the_same_bytes(tiny_dit, batches, tmp_path) -> None:
    """Also where one of them is killed, and the same command is given again."""
    model, both = tmp_path / "model", {"transformer": tiny_dit(), "transformer_2": tiny_dit(1)}
    save_pipeline(both["transformer"], model)
    add_denoiser(model, both["transformer_2"])
    stats, calls = tmp_path / "stats.safetensors", tmp_path / "calls"
    parts = {name: calibrate_denoiser(dit, batches(dit)) for name, dit in both.items()}
    save_statistics(parts, stats)
    made = [Call.of(batch) for batch in batches(both["transformer"])]
    save_calibration_set(
        [Call(call.args, call.kwargs, None, name) for name in both for call in made], {}, calls
    )

    def command(out: str) -> list[str]:
        return [
            "prune", str(model), "-o", str(tmp_path / out), "--statistics", str(stats),
            "--calibration-set", str(calls), "--preset", "fast", "--gram-memory", "20KB",
        ]  # fmt: skip

    dies = "2 measuring blocks 1"
    groups = [
        (1, "", command("1")), (2, "", command("2")),
        (3, dies, command("3")), (3, "", command("3")),
    ]  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", GROUPS, json.dumps(groups)], capture_output=True, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}, timeout=300,
    )  # fmt: skip
    codes = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]
    assert codes == [[0], [0, 0], [2, 2, -signal.SIGKILL], [0, 0, 0]], done.stderr[-3000:]
    assert "error: process 2 of 3 (id " in done.stderr
    assert files_of(tmp_path / "1") == files_of(tmp_path / "2") == files_of(tmp_path / "3")
    left = {path.name for path in Path(tmp_path).iterdir() if path.name.startswith(".")}
    assert left == set()
