"""The example in the docstring of each public function runs, in the order of use."""

from __future__ import annotations

import inspect
import re
import shutil
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest

import ditprune

FUNCTIONS = [
    "sample", "load_calls", "calibrate", "load_statistics", "inspect", "prune_", "prune", "verify",
    "extract_mask", "apply_mask_", "evaluate", "convert", "report", "recorded", "shrink_", "shrink",
]  # fmt: skip
OTHERS = [
    ditprune.Statistics.save, ditprune.Outcome.save, ditprune.Calls, ditprune.runtime.sparsify_,
    ditprune.runtime.desparsify_,
]  # fmt: skip


def _half_is_zero(scope: dict[str, Any]) -> bool:
    weight = scope["pipe"].transformer.transformer_blocks[0].attn1.to_q.weight
    return 0.4 < (weight == 0).float().mean() < 0.6


def _is_smaller(outcome: Any) -> bool:
    return outcome.ratio >= 0.3 and outcome.after.num_macs < outcome.before.num_macs


# What is there, or is true, once an example has run.
LEAVES: dict[str, Callable[[dict[str, Any]], bool]] = {
    "sample": lambda scope: len(scope["calls"]) > 0,
    "load_calls": lambda scope: list(scope["stats"].denoisers) == ["transformer"],
    "calibrate": lambda scope: scope["stats"].denoisers["transformer"].num_calls > 0,
    "load_statistics": lambda scope: scope["plan"].num_weights > 0,
    "inspect": lambda scope: len(scope["plan"].denoisers["transformer"].targets) > 0,
    "prune_": lambda scope: abs(scope["outcome"].sparsity - 0.5) < 0.01 and _half_is_zero(scope),
    "prune": lambda scope: not ditprune.verify("pruned") and _half_is_zero(scope),
    "verify": lambda scope: scope["failures"] == [] and scope["outcome"].num_pruned > 0,
    "extract_mask": lambda scope: (
        Path("mask.safetensors").stat().st_size >= scope["size_bytes"] and _half_is_zero(scope)
    ),
    "apply_mask_": lambda scope: scope["outcome"].num_pruned > 0 and _half_is_zero(scope),
    "evaluate": lambda scope: scope["ssim"]["low"] <= scope["ssim"]["value"] < 1,
    "convert": lambda scope: not ditprune.verify("again"),
    "report": lambda scope: Path(scope["page"]).read_text().startswith("<!"),
    "recorded": lambda scope: scope["stats"].denoisers["transformer"].num_calls == 2,
    "shrink_": lambda scope: len(scope["stay"]) <= 5 and _is_smaller(scope["outcome"]),
    "shrink": lambda scope: not ditprune.verify("small") and _is_smaller(scope["outcome"]),
    "Statistics.save": lambda scope: len(scope["stats"].denoisers) == 1,
    "Outcome.save": lambda scope: not ditprune.verify("out"),
    "Calls": lambda scope: (Path("calls") / "calibration_set.json").is_file(),
    "sparsify_": lambda scope: set(scope["names"]) <= set(scope["decisions"]),
    "desparsify_": lambda scope: (
        not any(
            isinstance(module, ditprune.runtime.SparseLinear)
            for module in scope["pruned_pipe"].transformer.modules()
        )
    ),
}


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
    assert LEAVES[_name_of(documented)](scope)
