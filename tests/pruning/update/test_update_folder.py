"""Recipes that update weights, folder to folder: as in memory, verified, and resumable."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import ditprune
from ditprune.calls import Call
from ditprune.checkpoints.calibration_set import (
    load_calibration_set,
    save_calibration_set,
    start_calibration_set,
)
from ditprune.checkpoints.locate import locate
from ditprune.cli.main import run
from ditprune.denoiser.pipeline import load_denoiser
from ditprune.denoiser.placement import Placement
from ditprune.errors import ModelError, RecipeError
from ditprune.method.distill import Distill
from ditprune.method.words import build
from ditprune.pruning.loop import prune_checkpoint
from ditprune.pruning.update.folder import Source
from ditprune.pruning.verify import false_claims
from ditprune.targets.discover import discover
from ditprune.writing import staging
from folders import files_of, save_pipeline, tensors_on_disk

RECIPES: list[dict[str, Any]] = [
    {"reconstruction": "admm", "mask": "reconstruction", "allocation": "sensitivity"},
    {"reconstruction": "obs", "pattern": "2:4"},
    {"sparsity": 0.7, "allocation": "owl", "refinement": Distill(num_steps=3, batch_size=4)},
]


@pytest.fixture(scope="module")
def source(tiny_dit, batches, tmp_path_factory) -> Source:
    folder = tmp_path_factory.mktemp("calls") / "set"
    calls = [Call.of(batch) for batch in batches(tiny_dit())]
    save_calibration_set(calls, {"seed": 0}, folder)
    return Source(load_calibration_set(folder), Placement())


@pytest.mark.parametrize("words", RECIPES, ids=str)
def test_a_folder_gets_what_memory_gets_and_keeps_its_claims(
    words, source, tiny_pipeline, tiny_stats, tmp_path, same_bits
) -> None:
    model, out = locate(str(tiny_pipeline)), tmp_path / "out"
    outcomes = prune_checkpoint(model, out, {"any": tiny_stats}, build(**words), source=source)
    assert list(false_claims(locate(str(out)))) == []
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    denoiser = load_denoiser(model.denoisers["transformer"])
    calls = source.calibration_set.read(0)[0]
    own = ditprune.prune_(denoiser, tiny_stats, batches=calls, **words)
    assert outcomes["transformer"].targets == own.targets
    tensors = tensors_on_disk(out / "transformer")
    for name, tensor in denoiser.state_dict().items():
        if name in tensors:
            same_bits(tensors[name], tensor)


def test_calls_that_nothing_needs_are_refused(source, tiny_pipeline, tiny_stats, tmp_path) -> None:
    model, recipe = locate(str(tiny_pipeline)), build(allocation="owl")
    with pytest.raises(RecipeError, match="source: this recipe updates no weights"):
        prune_checkpoint(model, tmp_path / "out", {"any": tiny_stats}, recipe, source=source)
    assert list(tmp_path.iterdir()) == []


def test_a_budget_that_was_changed_is_found(tiny_pipeline, tiny_stats, tmp_path) -> None:
    from folders import edit_json

    out = tmp_path / "out"
    recipe = build(allocation="owl")
    prune_checkpoint(locate(str(tiny_pipeline)), out, {"any": tiny_stats}, recipe)
    name = "transformer_blocks.1.ff.net.2"

    def change(manifest: dict[str, Any]) -> None:
        manifest["targets"][name]["sparsity"] -= 0.1

    edit_json(out / "transformer" / "ditprune.json", change)
    (line,) = false_claims(locate(str(out)))
    assert line.startswith(f"{name}: the recipe asks for")


def test_outliers_are_counted_without_calls(tiny_dit, tiny_pipeline, tiny_stats, tmp_path) -> None:
    """OWL looks at the scores alone."""
    recipe = build(sparsity=0.6, allocation="owl")
    done = prune_checkpoint(
        locate(str(tiny_pipeline)), tmp_path / "out", {"any": tiny_stats}, recipe
    )
    assert list(false_claims(locate(str(tmp_path / "out")))) == []
    own = ditprune.prune_(tiny_dit(), tiny_stats, 0.6, allocation="owl")
    assert done["transformer"].targets == own.targets


def no_source(_calls: list[Call], _folder: Path) -> None:
    return None


def unfinished_source(calls: list[Call], folder: Path) -> Source:
    start_calibration_set(folder, 3, {}, {}).write(1, calls, {})
    return Source(load_calibration_set(folder), Placement())


def foreign_source(calls: list[Call], folder: Path) -> Source:
    save_calibration_set([replace(call, denoiser="other") for call in calls], {}, folder)
    return Source(load_calibration_set(folder), Placement())


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (no_source, "none were given; sample them with .* pass batches"),
        (unfinished_source, "set: 2 of 3 units are missing; finish it"),
        (foreign_source, "set: no call in it reaches transformer; sample one"),
    ],
)
def test_without_all_calls_nothing_begins(
    make, match, source, tiny_pipeline, tiny_stats, tmp_path, monkeypatch
) -> None:
    given = make(source.calibration_set.read(0)[0], tmp_path / "sets" / "set")
    monkeypatch.setattr("ditprune.pruning.loop.resumable_folder", None)
    model, recipe = locate(str(tiny_pipeline)), build(reconstruction="admm")
    with pytest.raises(RecipeError, match=match):
        prune_checkpoint(model, tmp_path / "out", {"any": tiny_stats}, recipe, source=given)
    assert {path.name for path in tmp_path.iterdir()} <= {"sets"}


def test_memory_for_no_grams_is_refused(source, tiny_pipeline, tiny_stats, tmp_path) -> None:
    model, given = locate(str(tiny_pipeline)), replace(source, max_gram_bytes=10**6)
    for words in ({"allocation": "sensitivity"}, {"allocation": "owl"}, {}):
        with pytest.raises(RecipeError, match="this recipe collects no Grams; leave it out"):
            prune_checkpoint(
                model, tmp_path / "out", {"any": tiny_stats}, build(**words), source=given
            )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("recipe", [{"reconstruction": "obs"}, {"refinement": "distill"}], ids=str)
def test_calls_that_do_not_fit_are_refused_in_a_line(
    recipe, tiny_pipeline, tiny_stats, tmp_path
) -> None:
    save_calibration_set([Call((torch.zeros(1, 3),))], {}, tmp_path / "set")
    misfit = Source(load_calibration_set(tmp_path / "set"), Placement())
    model, out = locate(str(tiny_pipeline)), tmp_path / "out"
    with pytest.raises(ModelError, match="set: the denoiser cannot run the calibration calls"):
        prune_checkpoint(model, out, {"any": tiny_stats}, build(**recipe), source=misfit)
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_what_was_computed_is_not_computed_again(
    source, tiny_pipeline, tiny_stats, tmp_path, monkeypatch
) -> None:
    """Interrupted while writing; the weights are kept beside what is written."""
    from ditprune.pruning.update import folder as updating

    model, recipe = locate(str(tiny_pipeline)), build(reconstruction="admm", packages=2)
    prune_checkpoint(model, tmp_path / "whole", {"any": tiny_stats}, recipe, source=source)
    times: list[int] = []
    whole = updating.update_targets

    def counted(*args: Any, **kwargs: Any) -> Any:
        times.append(1)
        return whole(*args, **kwargs)

    monkeypatch.setattr(updating, "update_targets", counted)
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr("ditprune.pruning.loop.write_manifest", interrupt)
        with pytest.raises(KeyboardInterrupt):
            prune_checkpoint(model, out, {"any": tiny_stats}, recipe, source=source)
    assert staging.part_of(out).exists()
    prune_checkpoint(model, out, {"any": tiny_stats}, recipe, source=source)
    assert len(times) == 1
    assert files_of(out) == files_of(tmp_path / "whole")


def interrupt(*_args: object) -> None:
    raise KeyboardInterrupt


def test_the_command_line(tiny_dit, tmp_path, capsys) -> None:
    model = save_pipeline(tiny_dit(), tmp_path / "model")
    stats, calls, out = tmp_path / "s", tmp_path / "set", tmp_path / "out"
    sampling = ["--num-samples", "6", "--num-inference-steps", "3", "--guidance-scale", "1.5"]
    assert run_line("calibrate", model, "-o", stats, "--calibration-set", calls, *sampling) == 0
    words = ["--reconstruction", "admm", "--mask", "reconstruction", "--allocation", "owl"]
    line = ["prune", model, "-o", out, "--statistics", stats, *words]
    capsys.readouterr()
    assert run_line(*line) == 2
    assert "--calibration-set DIR" in capsys.readouterr().err
    assert run_line(*line, "--calibration-set", calls) == 0
    assert run_line("verify", out) == 0
    capsys.readouterr()
    plain = ["prune", model, "-o", tmp_path / "p", "--statistics", stats]
    assert run_line(*plain, "--calibration-set", calls) == 2
    assert "updates no weights" in capsys.readouterr().err
    assert not (tmp_path / "p").exists()
    best = ["prune", model, "-o", tmp_path / "b", "--statistics", stats, "--preset", "best"]
    measured = [*best, "--allocation", "sensitivity", "--calibration-set", calls]
    assert run_line(*measured, "--dry-run") == 0
    plan = capsys.readouterr().out
    assert "from 12 rows of calls; Grams take 1 passes over them" in plan
    for stage in ("Grams", "budgets", "layers", "refinement", "in all"):
        assert re.search(rf"^{stage} +[\d.]+ (s|min|h) +[\d.]+ (s|min|h) *$", plan, re.MULTILINE)
    assert "with --allocation proxy: " in plan
    assert "with --allocation proxy --refinement none --mask reconstruction: " in plan
    fast = [*best[:-1], "fast", "--calibration-set", calls]
    assert run_line(*fast, "--dry-run", "--gpu-rate", "100") == 0
    plan = capsys.readouterr().out
    assert "block by block, where its blocks chain, from 12 rows of calls" in plan
    assert "on the way back through the blocks, once, on 12 rows" in plan
    assert "100 TFLOP/s, stated" in plan
    assert "on a GPU 24 GB are enough and 80 GB are enough" in plan
    for words, text in ((["--gpu-rate", "2"], "add it"), (["--gpu-rate", "nan"], "above 0")):
        assert run_line(*fast, *words) == 2
        assert text in capsys.readouterr().err
    num_targets = len(discover(tiny_dit()))
    for size, passes in (("1KB", 2 * num_targets), ("1GB", 1)):
        line = [*measured, "--gram-memory", size, "--dry-run"]
        assert run_line(*line) == 0
        assert f"Grams take {passes} passes" in capsys.readouterr().out
    assert run_line(*best, "--calibration-set", calls, "--gram-memory", "much") == 2
    assert "--gram-memory 'much': expected a size" in capsys.readouterr().err
    line = ["prune", model, "-o", tmp_path / "b", "--statistics", stats, "--gram-memory", "1GB"]
    for words in ([], ["--allocation", "sensitivity", "--calibration-set", calls, "--dry-run"]):
        assert run_line(*line, *words) == 2
        said = capsys.readouterr().err
        assert said.startswith("error: --gram-memory: this recipe collects no Grams")
        assert said.count("\n") == 1
    assert not (tmp_path / "b").exists()
    next(calls.glob("unit-*")).unlink()
    for words in ([], ["--dry-run"]):
        assert run_line(*best, "--calibration-set", calls, *words) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert "units are missing; finish it" in captured.err


def run_line(*words: object) -> int:
    return run([str(word) for word in words])


def test_the_manifest_says_how(source, tiny_pipeline, tiny_stats, tmp_path) -> None:
    out: Path = tmp_path / "out"
    recipe = build(preset="best", refinement=Distill(num_steps=2, batch_size=4))
    prune_checkpoint(locate(str(tiny_pipeline)), out, {"any": tiny_stats}, recipe, source=source)
    from ditprune.method.words import from_json
    from ditprune.writing.files import read_manifest

    claims = read_manifest(out / "transformer")
    assert from_json(claims["recipe"], "recipe") == recipe
    dampings = [target["damping"] for target in claims["targets"].values()]
    assert all(damping > 0 for damping in dampings)
