"""The example in the docstring of each public function runs, in the order of use."""

from __future__ import annotations

import inspect
import re
import shutil
import textwrap
from pathlib import Path
from typing import Any

import diffusers
import pytest

import ditprune

FUNCTIONS = [
    "sample", "load_calls", "calibrate", "load_statistics", "inspect", "prune_", "prune", "verify",
    "extract_mask", "apply_mask_", "evaluate", "convert", "report",
    "recorded",
]  # fmt: skip
OTHERS = [
    ditprune.Statistics.save, ditprune.Outcome.save, ditprune.Calls, ditprune.runtime.sparsify_,
    ditprune.runtime.desparsify_,
]  # fmt: skip


def example_in(documented: Any) -> str:
    """The indented code of a docstring: its first run of indented lines."""
    text = inspect.getdoc(documented) or ""
    match = re.search(r"\n\n((?: {4}.+\n?)+)", text)
    assert match, f"{documented} has no example"
    return textwrap.dedent(match[1])


def _name_of(documented: Any) -> str:
    return documented if isinstance(documented, str) else documented.__qualname__


def test_every_public_function_has_one() -> None:
    public = {name for name in ditprune.__all__ if inspect.isfunction(getattr(ditprune, name))}
    assert public == set(FUNCTIONS)
    for name in FUNCTIONS:
        assert len(example_in(getattr(ditprune, name)).splitlines()) == 3, name


@pytest.fixture(scope="module")
def work(tmp_path_factory) -> Path:
    """What the examples begin with, as they would be after some work."""
    folder = tmp_path_factory.mktemp("examples")
    pipe = diffusers.DiTPipeline.from_pretrained(ditprune.bundled.PIPELINE)
    calls = ditprune.sample(pipe, labels=[3, 7], num_samples=4)
    calls.save(folder / "calls")
    stats = ditprune.calibrate(pipe, calls)
    stats.save(folder / "stats.safetensors")
    stats.save(folder / "pipeline.statistics.safetensors")  # what `prune` finds beside "pruned"
    ditprune.prune("bundled", folder / "pruned", stats)
    ditprune.extract_mask(folder / "pruned", folder / "mask.safetensors")
    shutil.copytree(folder / "pruned", folder / "out")
    return folder


@pytest.mark.parametrize("documented", [*FUNCTIONS, *OTHERS], ids=_name_of)
def test_it_runs(documented, work, tmp_path, monkeypatch, capsys) -> None:
    for file in work.iterdir():
        copy = shutil.copytree if file.is_dir() else shutil.copy
        copy(file, tmp_path / file.name)
    monkeypatch.chdir(tmp_path)
    made = {
        "prune": ["pruned"], "verify": ["pruned"], "report": [], "convert": [],
        "extract_mask": ["mask.safetensors"], "apply_mask_": ["mask.safetensors"],
    }  # fmt: skip
    for name in made.get(str(documented), []):
        path = Path(name)
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    is_calls = documented is ditprune.Calls or documented == "sample"
    if is_calls:
        shutil.rmtree("calls")
    if documented is ditprune.Outcome.save:
        shutil.rmtree("out")
    load = diffusers.DiTPipeline.from_pretrained
    scope: dict[str, Any] = {
        "ditprune": ditprune, "diffusers": diffusers, "pipe": load(ditprune.bundled.PIPELINE),
        "pruned_pipe": load(work / "pruned"), "calls": ditprune.load_calls(work / "calls"),
        "stats": ditprune.load_statistics("stats.safetensors"),
    }  # fmt: skip
    code = example_in(getattr(ditprune, documented) if isinstance(documented, str) else documented)
    exec(compile(code, str(documented), "exec"), scope)
