"""The examples run as they stand."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np

EXAMPLES = Path(__file__).parent.parent / "examples"
NOTEBOOK = EXAMPLES / "prune_and_compare.ipynb"
EXECUTE = """
import sys, nbformat
from nbclient import NotebookClient
notebook = nbformat.read(sys.argv[1], as_version=4)
NotebookClient(notebook, timeout=600, kernel_name="python3").execute()
nbformat.write(notebook, "done.ipynb")
"""


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


def test_the_notebook(tmp_path: Path) -> None:
    """In a folder of its own, by a kernel of this Python; a cell that fails fails the test."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    subprocess.run(
        [sys.executable, "-c", EXECUTE, NOTEBOOK], cwd=tmp_path, check=True, capture_output=True,
        env={**os.environ, "PATH": path, "IPYTHONDIR": str(tmp_path / "ipython")},
    )  # fmt: skip
    text = (tmp_path / "done.ipynb").read_text(encoding="utf-8")
    assert "stw: every claim holds" in text
    assert "magnitude: mean difference from dense" in text
    assert "image/png" in text


def test_the_notebook_is_kept_without_outputs() -> None:
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert len(code) > 4
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)
