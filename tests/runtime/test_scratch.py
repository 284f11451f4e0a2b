"""What the kernel keeps for the next product stays small, however many threads there are."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

CODE = """
import torch
from ditprune.runtime.kernel_call import multiply
from ditprune.runtime.packed import pack

def held() -> int:
    pages = int(open("/proc/self/statm").read().split()[1])
    return pages * 4096

weight = torch.zeros(32, 24576)
weight[:, ::512] = 1
packed = pack(weight)
torch.set_num_threads(32)
multiply(torch.ones(1, 24576), packed, 32)
multiply(torch.ones(4096, 64), pack(torch.ones(32, 64)), 32)  # starts the threads
before = held()
outputs = multiply(torch.ones(1, 24576).expand(4096, -1), packed, 32)
assert (outputs == 48).all()
print(held() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc to see memory")
def test_inputs_of_many_threads_are_kept_within_bounds() -> None:
    """4096 tokens are tiles for 32 threads, whose inputs would take 100 to 400 MB."""
    run = subprocess.run(
        [sys.executable, "-c", CODE], capture_output=True, text=True, check=True, env=os.environ
    )
    assert int(run.stdout) < 80 << 20
