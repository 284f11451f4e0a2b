"""A `max_error`, folder to folder: as in memory, told by the manifest, found once."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from torch import nn

import ditprune
from ditprune.calls import Call
from ditprune.checkpoints.calibration_set import load_calibration_set, save_calibration_set
from ditprune.checkpoints.locate import locate
from ditprune.checkpoints.skeleton import skeleton
from ditprune.checkpoints.statistics_file import save_statistics
from ditprune.cli.main import run
from ditprune.cli.plans import error_lines
from ditprune.denoiser.pipeline import load_denoiser
from ditprune.denoiser.placement import Placement
from ditprune.errors import OutputError, RecipeError
from ditprune.method.words import build
from ditprune.pruning import loop
from ditprune.pruning.forecast import forecast_run, forecast_updates
from ditprune.pruning.job import open_jobs, plan_jobs
from ditprune.pruning.loop import prune_checkpoint
from ditprune.pruning.row_cost import row_cost
from ditprune.pruning.update import error_folder, folder
from ditprune.pruning.update.folder import Source
from ditprune.pruning.update.share import most_tries
from ditprune.pruning.verify import false_claims
from ditprune.reporting.told import measured_error
from ditprune.writing.files import read_manifest
from folders import add_denoiser, edit_json, files_of, save_pipeline, tensors_on_disk

ASKED = 0.002
RECIPES: list[dict[str, Any]] = [
    {},
    {"allocation": "sensitivity"},
    {"reconstruction": "obs", "allocation": "proxy"},
]


@pytest.fixture(scope="module")
def tiny_dit(tiny_dit) -> Callable[..., nn.Module]:
    """Of one block: a share is found by many tries."""
    return partial(tiny_dit, num_layers=1)


@pytest.fixture(scope="module")
def tiny_stats(tiny_dit, batches) -> Any:
    return ditprune.calibrate(tiny_dit(), batches(tiny_dit()))


@pytest.fixture(scope="module")
def tiny_pipeline(tiny_dit, tmp_path_factory) -> Path:
    return save_pipeline(tiny_dit(), tmp_path_factory.mktemp("one block") / "model")


@pytest.fixture(scope="module")
def calls(tiny_dit, batches) -> list[Call]:
    return [Call.of(batch) for batch in batches(tiny_dit(), 8)]


@pytest.fixture(scope="module")
def source(calls, tmp_path_factory) -> Source:
    place = tmp_path_factory.mktemp("calls") / "set"
    save_calibration_set(calls, {"seed": 0}, place)
    return Source(load_calibration_set(place), Placement())


@pytest.mark.parametrize("words", RECIPES, ids=str)
def test_a_folder_gets_what_memory_gets_and_keeps_its_claims(
    words, source, calls, tiny_pipeline, tiny_stats, tmp_path, same_bits
) -> None:
    model, out = locate(str(tiny_pipeline)), tmp_path / "out"
    recipe = build(max_error=ASKED, **words)
    outcomes = prune_checkpoint(model, out, {"any": tiny_stats}, recipe, source=source)
    assert list(false_claims(locate(str(out)))) == []
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    denoiser = load_denoiser(model.denoisers["transformer"])
    in_memory = ditprune.prune_(denoiser, tiny_stats, batches=calls, recipe=recipe)
    outcome = outcomes["transformer"]
    assert (outcome.targets, outcome.recipe) == (in_memory.targets, in_memory.recipe)
    assert outcome.error.measured == pytest.approx(in_memory.error.measured, rel=1e-9)
    assert outcome.error.expected == in_memory.error.expected
    tensors = tensors_on_disk(out / "transformer")
    for name, tensor in denoiser.state_dict().items():
        if name in tensors:
            same_bits(tensors[name], tensor)
    manifest = read_manifest(out / "transformer")
    assert manifest["recipe"]["sparsity"] == outcome.recipe.sparsity
    assert manifest["recipe"]["max_error"] is None
    assert manifest["max_error"] == vars(outcome.error)
    card = (out / "README.md").read_text()
    measured = measured_error(asdict(outcome.error))
    assert f"Expected were {outcome.error.expected:.3g}; {measured}." in card


def test_its_manifest_repeats_a_plain_folder_without_calls(
    source, tiny_pipeline, tiny_stats, tmp_path
) -> None:
    out, again, stats = tmp_path / "out", tmp_path / "again", tmp_path / "stats.safetensors"
    prune_checkpoint(
        locate(str(tiny_pipeline)), out, {"transformer": tiny_stats}, build(max_error=ASKED),
        source=source,
    )  # fmt: skip
    save_statistics({"transformer": tiny_stats}, stats)
    line = ["prune", tiny_pipeline, "-o", again, "--statistics", stats, "--recipe"]
    assert run([str(word) for word in [*line, out / "transformer" / "ditprune.json"]]) == 0
    first, second = tensors_on_disk(out / "transformer"), tensors_on_disk(again / "transformer")
    assert all((first[name] == second[name]).all() for name in first)
    assert (
        read_manifest(again / "transformer")["targets"]
        == (read_manifest(out / "transformer")["targets"])
    )


def interrupt(*_args: object, **_kwargs: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("words", "place"),
    [
        ({}, "layout_of"),
        ({}, "measure_error"),
        ({}, "card"),
        ({"allocation": "sensitivity"}, "updates_of"),
        ({"allocation": "sensitivity"}, "write_manifest"),
    ],
    ids=str,
)
def test_what_was_found_is_not_looked_for_again(
    words, place, source, tiny_pipeline, tiny_stats, tmp_path, monkeypatch
) -> None:
    model, recipe = locate(str(tiny_pipeline)), build(max_error=ASKED, **words)
    prune_checkpoint(model, tmp_path / "whole", {"any": tiny_stats}, recipe, source=source)
    out = tmp_path / "out"
    times: list[int] = []
    choose, update = error_folder.choose_share, folder.update_targets

    def counted_choose(*args: Any) -> Any:
        times.append(1)
        return choose(*args)

    def with_costs(*args: Any) -> Any:
        assert args[-1] is not None
        return update(*args)

    monkeypatch.setattr(error_folder, "choose_share", counted_choose)
    monkeypatch.setattr(folder, "update_targets", with_costs)
    with monkeypatch.context() as patch:
        stopped = loop.card if place == "card" else loop
        patch.setattr(stopped, "write" if place == "card" else place, interrupt)
        with pytest.raises(KeyboardInterrupt):
            prune_checkpoint(model, out, {"any": tiny_stats}, recipe, source=source)
    other = build(max_error=2 * ASKED, **words)
    with pytest.raises(OutputError, match="an unfinished run with other settings"):
        prune_checkpoint(model, out, {"any": tiny_stats}, other, source=source)
    outcomes = prune_checkpoint(model, out, {"any": tiny_stats}, recipe, source=source)
    assert len(times) == 1
    assert files_of(out) == files_of(tmp_path / "whole")
    assert outcomes["transformer"].error is not None


def test_two_denoisers_have_a_share_each(tiny_dit, batches, tmp_path) -> None:
    names = {"transformer": tiny_dit(0), "transformer_2": tiny_dit(1)}
    place = save_pipeline(names["transformer"], tmp_path / "model")
    add_denoiser(place, names["transformer_2"], "transformer_2")
    given = {name: batches(one, 8, seed) for seed, (name, one) in enumerate(names.items())}
    stats = {name: ditprune.calibrate(one, given[name]) for name, one in names.items()}
    every_call = [Call((), batch, None, name) for name in names for batch in given[name]]
    save_calibration_set(every_call, {}, tmp_path / "set")
    source = Source(load_calibration_set(tmp_path / "set"), Placement())
    recipe = build(max_error=ASKED)
    outcomes = prune_checkpoint(locate(str(place)), tmp_path / "out", stats, recipe, source=source)
    assert list(false_claims(locate(str(tmp_path / "out")))) == []
    for name, denoiser in names.items():
        alone = ditprune.prune_(denoiser, stats[name], batches=given[name], recipe=recipe)
        assert outcomes[name].recipe == alone.recipe
        assert outcomes[name].error.measured == pytest.approx(alone.error.measured, rel=1e-9)
        assert len(list(error_lines(outcomes[name]))) == 2


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"asked": 0}, "max_error: 0 asked, expected a number above 0"),
        ({"expected": 0.2}, "max_error: 0.2 expected, not below the 0.002 asked for"),
        ({"measured": -1.0}, "max_error: -1.0 measured on 2 rows"),
        ({"num_rows": 0}, "measured on 0 rows, expected a number from 0 up on at least one"),
        ({"num_rows": "2"}, "ditprune.json: cannot be read|measured on '2' rows"),
        ({"more": 1}, "ditprune.json: cannot be read"),
    ],
    ids=str,
)
def test_claims_that_no_run_makes_are_found(
    change, match, source, tiny_pipeline, tiny_stats, tmp_path
) -> None:
    out = tmp_path / "out"
    prune_checkpoint(
        locate(str(tiny_pipeline)), out, {"any": tiny_stats}, build(max_error=ASKED), source=source
    )
    edit_json(
        out / "transformer" / "ditprune.json", lambda content: content["max_error"].update(change)
    )
    (line,) = false_claims(locate(str(out)))
    assert re.search(match, line)


def test_a_recipe_without_its_share_is_found(source, tiny_pipeline, tiny_stats, tmp_path) -> None:
    out = tmp_path / "out"
    prune_checkpoint(
        locate(str(tiny_pipeline)), out, {"any": tiny_stats}, build(max_error=ASKED), source=source
    )

    def change(content: dict[str, Any]) -> None:
        content["recipe"] |= {"sparsity": None, "max_error": ASKED}

    edit_json(out / "transformer" / "ditprune.json", change)
    (line,) = false_claims(locate(str(out)))
    assert "expected the share that it led to" in line


def test_without_calls_nothing_begins(tiny_pipeline, tiny_stats, tmp_path) -> None:
    model, recipe = locate(str(tiny_pipeline)), build(max_error=ASKED)
    with pytest.raises(RecipeError, match="runs the denoiser on calibration calls and none were"):
        prune_checkpoint(model, tmp_path / "out", {"any": tiny_stats}, recipe)
    assert list(tmp_path.iterdir()) == []


def test_too_few_rows_leave_nothing(tiny_dit, batches, tiny_pipeline, tiny_stats, tmp_path) -> None:
    row = {name: value[:1] for name, value in batches(tiny_dit(), 1)[0].items()}
    save_calibration_set([Call.of(row)], {}, tmp_path / "set")
    source = Source(load_calibration_set(tmp_path / "set"), Placement())
    model, recipe = locate(str(tiny_pipeline)), build(max_error=ASKED)
    with pytest.raises(RecipeError, match="at least 2 rows, 1 given"):
        prune_checkpoint(model, tmp_path / "out", {"any": tiny_stats}, recipe, source=source)
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_it_is_foreseen(calls, tiny_pipeline, tiny_stats, tmp_path) -> None:
    """The tries cost what they cost; the plan holds no number of weights."""
    model, recipe = locate(str(tiny_pipeline)), build(max_error=ASKED, reconstruction="obs")
    jobs = open_jobs(model, {"any": tiny_stats}, recipe)
    assert forecast_run(model, jobs, tmp_path).num_bytes > 0
    (plan,) = plan_jobs(jobs).values()
    assert {target.num_prune for target in plan.targets.values()} == {None}
    targets = jobs[0].selection.targets
    row = row_cost(skeleton(model.denoisers["transformer"]), targets, calls[0])
    known = forecast_updates(targets, build(reconstruction="obs"), row, 16, 1000)
    sought = forecast_updates(targets, recipe, row, 16, 1000)
    assert (known.num_passes, sought.num_passes) == (1, 2)
    layers = known.num_operations["layers"]
    assert sought.num_operations["share"] > most_tries(recipe) * layers
    assert "share" not in known.num_operations
    in_stages = forecast_updates(targets, recipe, row, 16, 1000, max_gram_bytes=1)
    assert in_stages.num_passes == (1 + most_tries(recipe)) * len(targets)
