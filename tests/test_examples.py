"""The examples run as they stand."""

from __future__ import annotations

import ast
import json
import runpy
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from ditprune.cli.main import run as ditprune_of

EXAMPLES = Path(__file__).parent.parent / "examples"
NOTEBOOK = EXAMPLES / "prune_and_compare.ipynb"


def run(*arguments: object) -> str:
    command = [sys.executable, *(str(argument) for argument in arguments)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def test_prune_your_own() -> None:
    printed = run(EXAMPLES / "prune_your_own.py")
    for saliency in ("magnitude", "wanda", "stw"):
        assert f"{saliency:9} removed 50.0%" in printed


def test_the_training_script_trains_and_resumes(tmp_path: Path, monkeypatch, capsys) -> None:
    """A few steps of everything on invented digits; a second run goes on where the first ended.

    In this process, so that torch is imported once; the script is executed anew each time.
    """
    generator = np.random.default_rng(0)
    images = generator.integers(0, 255, (128, 28, 28), dtype=np.uint8)
    labels = (np.arange(128) % 10).astype(np.uint8)
    data, script = tmp_path / "digits.npz", str(EXAMPLES / "train_bundled_model.py")
    np.savez(data, train_images=images, train_labels=labels, test_images=images, test_labels=labels)
    for num_steps in (2, 3):
        command = (
            script, "--data", data, "--out", tmp_path / "run", "--batch-size", 8, "--vae-steps", 2,
            "--classifier-epochs", 1, "--num-images", 2, "--num-steps", num_steps,
        )  # fmt: skip
        monkeypatch.setattr(sys, "argv", [str(word) for word in command])
        runpy.run_path(script, run_name="__main__")
    printed = capsys.readouterr().out
    assert "resumed at step 2" in printed
    assert '"steps": 3' in printed
    assert "3 steps of 8" in (tmp_path / "run" / "pipeline" / "README.md").read_text()


def test_the_notebook(tmp_path: Path, monkeypatch, capsys) -> None:
    """In this process, so that torch is imported once: its Python, and its lines of `ditprune`."""
    monkeypatch.chdir(tmp_path)
    scope: dict[str, Any] = {}
    shown = [run_cell("".join(cell["source"]), scope) for cell in code_cells()]
    printed = capsys.readouterr().out
    assert "stw: every claim holds" in printed
    assert "magnitude: mean difference from dense" in printed
    assert [value.size for value in shown if value is not None] == [(960, 288)]


def run_cell(source: str, scope: dict[str, Any]) -> Any:
    """What a notebook would show below the cell: the value of its last expression."""
    if source.startswith("%%bash\n"):
        for line in source.splitlines()[1:]:
            command, *words = shlex.split(line)
            assert command == "ditprune" or line == "set -e", line
            assert command == "set" or ditprune_of(words) == 0, line
        return None
    body = ast.parse(source).body
    last = body.pop() if isinstance(body[-1], ast.Expr) else None
    exec(compile(ast.Module(body, []), "cell", "exec"), scope)
    return (
        None if last is None else eval(compile(ast.Expression(last.value), "cell", "eval"), scope)
    )


def code_cells() -> list[dict[str, Any]]:
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    return [cell for cell in cells if cell["cell_type"] == "code"]


def test_the_notebook_is_kept_without_outputs() -> None:
    code = code_cells()
    assert len(code) > 4
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)
