"""The kernel is compiled on first use; where there is no compiler, what needs it is skipped."""

from __future__ import annotations

import os
import shlex
import shutil

import pytest

from ditprune.runtime import build


@pytest.fixture(autouse=True)
def needs_a_compiler(request: pytest.FixtureRequest) -> None:
    """Skips a test unless it is marked as one that does without."""
    names = shlex.split(os.environ.get("CXX", ""))[:1] or build.COMPILERS
    if not any(map(shutil.which, names)) and not request.node.get_closest_marker("no_compiler"):
        pytest.skip(f"no C++ compiler ({', '.join(names)}) to build the kernel with")
