"""The examples run as they stand."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np

EXAMPLES = Path(__file__).parent.parent / "examples"


def run(*arguments: object) -> str:
    command = [sys.executable, *(str(argument) for argument in arguments)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def test_prune_your_own() -> None:
    printed = run(EXAMPLES / "prune_your_own.py")
    for saliency in ("magnitude", "wanda", "stw"):
        assert f"{saliency:9} removed 50.0%" in printed


def test_the_training_script_trains_and_resumes(tmp_path: Path) -> None:
    """A few steps of everything on invented digits; a second run goes on where the first ended."""
    generator = np.random.default_rng(0)
    images = generator.integers(0, 255, (256, 28, 28), dtype=np.uint8)
    labels = (np.arange(256) % 10).astype(np.uint8)
    data = tmp_path / "digits.npz"
    np.savez(data, train_images=images, train_labels=labels, test_images=images, test_labels=labels)
    common = (
        EXAMPLES / "train_bundled_model.py", "--data", data, "--out", tmp_path / "run",
        "--batch-size", 8, "--vae-steps", 2, "--classifier-epochs", 1, "--num-images", 2,
    )  # fmt: skip
    run(*common, "--num-steps", 2)
    printed = run(*common, "--num-steps", 3)
    assert "resumed at step 2" in printed
    assert '"steps": 3' in printed
    assert "3 steps of 8" in (tmp_path / "run" / "pipeline" / "README.md").read_text()
