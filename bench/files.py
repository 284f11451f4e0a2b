"""How many of our files does a command run through?

    python bench/files.py

Traces real runs on the bundled model: a plain `prune`, one with the recipe `best` (few steps) and
`evaluate` (few images). A file counts if at least one function in it runs; module and class bodies
do not count.
"""

from __future__ import annotations

import inspect
import json
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from click.testing import CliRunner

import ditprune
from ditprune.cli.main import app

PACKAGE = str(Path(ditprune.__file__).parent)
# The recipe of `--preset best` with few steps.
BEST = {
    "sparsity": 0.7,
    "reconstruction": "admm",
    "mask": "refinement",
    "allocation": "sensitivity",
    "refinement": "distill",
    "refinement_constants": {"num_steps": 4, "batch_size": 4},
}


def files_of(run: Callable[[], object]) -> list[str]:
    """The files of the package in which a function runs, as paths below the package."""
    seen: set[str] = set()

    def profile(frame: FrameType, event: str, _argument: Any) -> None:
        code = frame.f_code
        is_function = bool(code.co_flags & inspect.CO_OPTIMIZED)
        name = code.co_filename
        if event == "call" and is_function and name.startswith(PACKAGE) and name.endswith(".py"):
            seen.add(name)

    threading.setprofile(profile)  # for the threads that the run starts
    sys.setprofile(profile)
    try:
        run()
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    return sorted(str(Path(file).relative_to(PACKAGE)) for file in seen)


def command(*words: str) -> None:
    """Run `ditprune WORDS`; anything but success ends the script."""
    result = CliRunner().invoke(app, list(words), catch_exceptions=False)
    if result.exit_code:
        sys.exit(f"ditprune {' '.join(words)}: exit {result.exit_code}\n{result.output}")


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        stats, calls = f"{folder}/stats.safetensors", f"{folder}/calls"
        recipe = Path(folder, "best.json")
        recipe.write_text(json.dumps(BEST), encoding="utf-8")
        command("calibrate", "bundled", "-o", stats, "--calibration-set", calls,
                "--num-samples", "8")  # fmt: skip
        given = ("--statistics", stats)
        runs = {
            "prune": ("prune", "bundled", "-o", f"{folder}/plain", *given),
            "prune, best": ("prune", "bundled", "-o", f"{folder}/best", *given,
                            "--recipe", str(recipe), "--calibration-set", calls),
            "evaluate": ("evaluate", "bundled", f"{folder}/plain", "-o", f"{folder}/evaluation",
                         "--num-images", "4", "--num-held-out", "4",
                         "--num-inference-steps", "2"),
        }  # fmt: skip
        for name, words in runs.items():
            files = files_of(lambda words=words: command(*words))
            print(f"{name}: {len(files)} files")
            print(*(f"    {file}" for file in files), sep="\n")


if __name__ == "__main__":
    main()
