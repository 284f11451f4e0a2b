"""Runs the command line in groups of processes, forked from one that has imported everything.

`torchrun` would import it once for itself and once for each member of each group.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

import pytest

SERVER = """
import gc, importlib, json, os, socket, sys
import accelerate, diffusers, torch.distributed.nn
diffusers.DiTTransformer2DModel, diffusers.DiTPipeline, diffusers.AutoencoderKL
from ditprune.cli.main import VERBS, run
for verb in VERBS:
    importlib.import_module(f"ditprune.cli.{verb}")
exec(sys.argv[1])
def member(rank, port, words, world, environment, umask):
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1",
                   "MASTER_PORT": str(port), **environment}
    os.umask(umask)
    code = run(words)
    sys.stdout.flush()
    os._exit(code)
gc.freeze()  # a member that collects garbage does not go through all libraries
for group in json.loads(sys.stdin.read()):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    members = []
    for rank in range(group["world"]):
        members.append(os.fork())
        if not members[-1]:
            member(rank, port, **group)
    codes = [os.waitstatus_to_exitcode(os.waitpid(member, 0)[1]) for member in members]
    for stream in (sys.stdout, sys.stderr):
        print("\\ncodes:", json.dumps(codes), file=stream, flush=True)
"""
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "HF_HUB_OFFLINE": "1"}
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")


@dataclass(frozen=True)
class Group:
    """How many processes share which command line, and what is set in each."""

    words: Sequence[str]
    world: int
    environment: Mapping[str, str] = field(default_factory=dict)
    umask: int = 0o022


@dataclass(frozen=True)
class Ended:
    """What the members of a group returned and, together, printed."""

    codes: list[int]
    out: str
    err: str


def run_groups(
    groups: Sequence[Group], environment: Mapping[str, str] | None = None, prepare: str = ""
) -> list[Ended]:
    """Run one group after the other.

    Args:
        environment: what is set when Python starts.
        prepare: code that runs before the first fork.
    """
    done = subprocess.run(
        [sys.executable, "-c", SERVER, prepare], input=json.dumps([asdict(it) for it in groups]),
        env={**os.environ, **ENVIRONMENT, **(environment or {})}, capture_output=True, text=True,
        timeout=900, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    out, err = (
        re.split(r"^codes: (.*)\n", text, flags=re.M) for text in (done.stdout, done.stderr)
    )
    codes = map(json.loads, out[1::2])
    return [Ended(*ended) for ended in zip(codes, out[:-1:2], err[:-1:2], strict=True)]
