"""Runs code in processes that have not imported diffusers or ditprune: forks of one.

It has imported what diffusers imports, which takes most of the time of a fresh process.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

SERVER = """
import gc, json, os, sys, traceback
import accelerate, scipy.stats, torch._dynamo, transformers
import transformers.modeling_utils, transformers.quantizers, transformers.tokenization_utils_base
assert not {"diffusers", "ditprune"} & set(sys.modules)
gc.freeze()
for line in sys.stdin:
    code, told = json.loads(line)
    child = os.fork()
    if not child:
        os.dup2(os.open(told, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
        try:
            exec(code, {"__name__": "__main__"})
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
Run = Callable[[str], tuple[int, str]]


@contextmanager
def nearly_fresh(place: Path) -> Iterator[Run]:
    """Gives what runs code in such a process, and gives its exit code and its stderr."""
    if not hasattr(os, "fork"):
        pytest.skip("forks")
    with subprocess.Popen(
        [sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        stdin, stdout, told = process.stdin, process.stdout, place / "stderr"
        assert stdin is not None
        assert stdout is not None

        def run(code: str) -> tuple[int, str]:
            print(json.dumps([code, str(told)]), file=stdin, flush=True)
            return int(stdout.readline()), told.read_text(encoding="utf-8")

        yield run
        stdin.close()
