"""Runs the command line on spoilt input, in this process, with nothing from the network."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hostile_ground import Ground, copy, picture

from ditprune.cli.main import run


@pytest.fixture(scope="session")
def valid(tiny_pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A ground where every verb succeeds; never changed by a test."""
    ground = Ground(tmp_path_factory.mktemp("valid"))
    for folder in (ground.outside, ground.out.parent, ground.model.parent):
        folder.mkdir()
    copy(tiny_pipeline, ground.model)
    (ground.outside / "secret.txt").write_text("secret\n", encoding="utf-8")
    ground.recipe.write_text('{"sparsity": 0.25}', encoding="utf-8")
    for command in (
        ["calibrate", ground.model, "-o", ground.statistics, "--num-samples", 2,
         "--num-inference-steps", 1, "--calibration-set", ground.calls],
        ["prune", ground.model, "-o", ground.pruned, "--statistics", ground.statistics],
    ):  # fmt: skip
        assert run([str(arg) for arg in command]) == 0
    gc.collect()
    gc.freeze()  # calibrate collects garbage: a second each time, with all of diffusers loaded
    yield ground.root
    gc.unfreeze()


@pytest.fixture
def ground(valid: Path, tmp_path: Path) -> Ground:
    """A copy of it, to spoil."""
    for folder in valid.iterdir():
        copy(folder, tmp_path / folder.name)
    return Ground(tmp_path)


@pytest.fixture
def refused(ditprune: Callable[..., tuple[int, str, str]]) -> Callable[..., str]:
    """Runs what must be refused: exit code 2, one line, no file changed; gives the line.

    What shows only midway may have the lines of its progress before.
    """

    def call(
        ground: Ground, *args: object, is_midway: bool = False, leave_out: tuple[Path, ...] = ()
    ) -> str:
        before = picture(ground.root, leave_out)
        code, out, err = ditprune(*args)
        lines = err.split("\n")[:-1]
        assert code == 2, err
        assert out == ""
        assert [line for line in lines if line.startswith("error: ")] == lines[-1:]
        assert is_midway or len(lines) == 1, err
        assert "Traceback" not in err
        assert lines[-1].isprintable()
        assert not ground.mark.exists()
        assert picture(ground.root, leave_out) == before
        return lines[-1]

    return call
