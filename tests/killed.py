"""Runs the command line in forked children that can be killed, at a moment or before a step."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

# Forks a child for each line on its stdin, so that the libraries load once. A child may be told to
# kill itself right before a step: an opening, renaming, making or removing of a file below `place`.
SERVER = """
import gc, importlib, os, signal, sys
import diffusers
from ditprune.cli.main import VERBS, run
for verb in VERBS:
    importlib.import_module(f"ditprune.cli.{verb}")
diffusers.DiTTransformer2DModel
exec(sys.argv[1])
gc.freeze()  # a child that collects garbage does not go through all libraries
EVENTS = {"open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.truncate", "shutil.rmtree"}
print("ready", flush=True)
for line in sys.stdin:
    place, last_step, how, *arguments = line.rstrip().split("\\t")
    told, tell = os.pipe()
    pid = os.fork()
    if not pid:
        num_steps = 0
        def count(event, args):
            global num_steps
            if event in EVENTS and args and str(args[0]).startswith(place):
                num_steps += 1
                if num_steps == int(last_step):
                    os.kill(os.getpid(), int(how))
        if int(last_step) >= 0:
            sys.addaudithook(count)
        sys.stdout = open(os.devnull, "w")
        code = run(arguments)
        os.write(tell, str(num_steps).encode())
        os._exit(code)
    os.close(tell)
    print(pid, flush=True)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    print(code, os.read(told, 9).decode() or 0, flush=True)
    os.close(told)
"""
NEVER = -1
OUT_EXISTS = 2  # the exit code of a run whose result was there already


class Server:
    """Runs `ditprune …` in forked children that can be killed."""

    def __init__(self, process: subprocess.Popen[str], place: Path) -> None:
        self._process, self._place = process, place
        assert self._line() == "ready"

    def start(
        self, arguments: list[object], last_step: int = NEVER, how: int = signal.SIGKILL
    ) -> int:
        """Begin; the child's process id. It kills itself before its step number `last_step`.

        With SIGSTOP for `how` it waits there, until SIGCONT.
        """
        stdin = self._process.stdin
        assert stdin is not None
        stdin.write("\t".join(map(str, (self._place, last_step, int(how), *arguments))) + "\n")
        stdin.flush()
        return int(self._line())

    def finish(self) -> tuple[int, int]:
        """The exit code, and the number of steps if they were counted to the end."""
        code, num_steps = map(int, self._line().split())
        return code, num_steps

    def _line(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()


@contextmanager
def serving(place: Path, prepare: str = "") -> Iterator[Server]:
    """A server that counts steps below `place`; it runs the code `prepare` before the first."""
    if not hasattr(os, "fork"):
        pytest.skip("kills processes")
    with subprocess.Popen(
        [sys.executable, "-c", SERVER, prepare], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    ) as process:  # fmt: skip
        yield Server(process, place)
        assert process.stdin is not None
        process.stdin.close()


def trials(least: int, seen: Counter[str], needed: Mapping[str, int]) -> Iterator[int]:
    """Numbers of trials: at least so many, then until as much was seen as is needed.

    A busy machine runs at another pace from one moment to the next, so no fixed number does.
    """
    for trial in range(5 * least):
        yield trial
        if trial + 1 >= least and all(seen[what] >= count for what, count in needed.items()):
            return
    pytest.fail(f"seen {dict(seen)} in {5 * least} trials, needed {dict(needed)}")
