"""What the command line refuses, and short options of sampling."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ditprune.cli.main import run

SAMPLING = ("--num-inference-steps", 2, "--guidance-scale", 1.5)


@pytest.fixture
def refused(ditprune: Callable[..., Any], tmp_path: Path) -> Callable[..., str]:
    """Runs what must be refused: exit code 2, one line, nothing written; gives the line.

    What shows only midway may have the lines of its progress before.
    """

    def call(*args: object, midway: bool = False) -> str:
        before = sorted(tmp_path.rglob("*"))
        code, out, err = ditprune(*args)
        assert code == 2, err
        assert out == ""
        lines = err.splitlines()
        assert lines[-1].startswith("error: ")
        if midway:
            assert not any(line.startswith("error") for line in lines[:-1])
        else:
            assert lines == lines[-1:]
        assert sorted(tmp_path.rglob("*")) == before
        return lines[-1]

    return call


@pytest.fixture(scope="session")
def statistics(tiny_pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Statistics of the tiny pipeline, made by the command line."""
    file = tmp_path_factory.mktemp("statistics") / "s.safetensors"
    command = ["calibrate", tiny_pipeline, "-o", file, "--num-samples", 4, *SAMPLING]
    assert run([str(arg) for arg in command]) == 0
    return file


@pytest.fixture
def pruned(pruned_once: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of it for each test: evaluating a folder writes its card anew."""
    return shutil.copytree(pruned_once, tmp_path_factory.mktemp("own") / "out")


@pytest.fixture(scope="session")
def pruned_once(
    tiny_pipeline: Path, statistics: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The tiny pipeline pruned by default."""
    out = tmp_path_factory.mktemp("pruned") / "out"
    command = ["prune", tiny_pipeline, "-o", out, "--statistics", statistics]
    assert run([str(arg) for arg in command]) == 0
    return out
