"""A folder, smaller: the same as in memory, after any interrupt, for blocks that chain or not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import nn

import ditprune
from ditprune.calls import Call
from ditprune.checkpoints.locate import locate
from ditprune.denoiser.placement import Placement
from ditprune.denoiser.replay import predicted, relative_error, run_call
from ditprune.errors import OutputError, RecipeError
from ditprune.method.distill import Distill
from ditprune.progress import silent
from ditprune.shrinking import one_denoiser
from ditprune.shrinking.in_folder import plan_folder, shrink_folder
from ditprune.shrinking.in_memory import shrink_denoiser_
from ditprune.shrinking.recipe import ShrinkRecipe
from folders import save_denoiser
from tiny_denoisers import FAMILIES, Draw

FLUX, DIT, LONG_SKIPS = "FluxTransformer2DModel", "DiTTransformer2DModel", "UVit2DModel"
RECIPE = ShrinkRecipe(ratio=0.25, modulation=0.5)


def calls_of(name: str) -> list[Call]:
    return [Call((), FAMILIES[name].call(Draw(seed))) for seed in range(12)]


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def folder(name: str) -> Path:
        if name not in made:
            place = tmp_path_factory.mktemp("shrink") / "model"
            made[name] = save_denoiser(FAMILIES[name].make(), place)
        return made[name]

    return folder


def run(folder: Path, name: str, out: Path, recipe: ShrinkRecipe = RECIPE, told=silent) -> Any:
    calls = calls_of(name)
    recipes = {"transformer": recipe}
    outcomes = shrink_folder(
        locate(str(folder)), out, lambda _: calls, recipes, Placement(), False, told
    )
    return outcomes["transformer"]


def loaded(folder: Path, name: str) -> nn.Module:
    import diffusers

    return getattr(diffusers, name).from_pretrained(folder).eval()


def error(smaller: nn.Module, dense: nn.Module, name: str) -> float:
    call = Call((), FAMILIES[name].call(Draw(99)))
    given = [predicted(run_call(denoiser, call), call) for denoiser in (smaller, dense)]
    return relative_error([(given[0], given[1])])


@pytest.mark.parametrize("name", [FLUX, DIT, LONG_SKIPS])
def test_a_folder_becomes_what_the_denoiser_becomes_in_memory(name, folders, tmp_path) -> None:
    out = tmp_path / "small"
    outcome = run(folders(name), name, out)
    denoiser = FAMILIES[name].make()
    here = shrink_denoiser_(denoiser, calls_of(name), RECIPE, silent)
    sizes, others = ({n: len(p.kept) for n, p in o.parts.items()} for o in (outcome, here))
    assert sizes.keys() == others.keys()
    alike = [name for name, size in sizes.items() if abs(size - others[name]) <= 16]
    assert len(alike) >= len(sizes) - 1  # rounding may turn a tie
    assert outcome.after.num_parameters == pytest.approx(here.after.num_parameters, rel=0.02)
    assert outcome.before == here.before
    assert outcome.ranks.keys() == here.ranks.keys()
    dense = FAMILIES[name].make()
    errors = [error(small, dense, name) for small in (loaded(out, name), denoiser)]
    assert errors[0] == pytest.approx(errors[1], rel=0.3)
    assert ditprune.verify(out) == []


WORDS = ["measuring blocks", "fitting blocks", "training blocks", "writing tensors"]


@pytest.mark.parametrize("word", WORDS)
def test_an_interrupted_run_goes_on_and_gives_the_same_bytes(
    word, folders, tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr(one_denoiser, "SETTINGS", Distill(num_steps=3))
    recipe = ShrinkRecipe(ratio=0.25, modulation=0.5, preset="best")
    whole, out = tmp_path / "whole", tmp_path / "again"
    run(folders(FLUX), FLUX, whole, recipe)
    seen: list[str] = []

    def stop(what: str, done: int, total: int) -> None:
        seen.append(what)
        if what == word and done > total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(folders(FLUX), FLUX, out, recipe, told=stop)
    assert not out.exists()
    seen.clear()
    run(folders(FLUX), FLUX, out, recipe, told=lambda what, *_: seen.append(what))
    earlier = WORDS[: WORDS.index(word)]
    assert not set(earlier) & set(seen)  # what was done is not done again
    for file in whole.iterdir():
        assert file.read_bytes() == (out / file.name).read_bytes(), file.name
    assert not list(out.glob(".*"))


def test_another_recipe_does_not_go_on_with_it(folders, tmp_path) -> None:
    def stop(what: str, *_: Any) -> None:
        if what == "fitting blocks":
            raise KeyboardInterrupt

    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        run(folders(DIT), DIT, out, told=stop)
    with pytest.raises(OutputError, match="ratio"):
        run(folders(DIT), DIT, out, ShrinkRecipe(ratio=0.1))


def test_a_plan_tells_what_ratios_cost_and_writes_nothing(folders, tmp_path) -> None:
    calls = calls_of(DIT)
    model = locate(str(folders(DIT)))
    before = sorted(folders(DIT).iterdir())
    plan = plan_folder(model, lambda _: calls, {"transformer": RECIPE}, Placement(), silent)
    found = plan["transformer"]
    few, many = (found.counts(ShrinkRecipe(ratio=ratio)) for ratio in (0.1, 0.4))
    assert 0 < found.error(few) < found.error(many)
    assert found.prices.size(found.cut(many)).num_macs < found.prices.size().num_macs
    assert sorted(folders(DIT).iterdir()) == before


def test_without_calls_nothing_begins(folders, tmp_path) -> None:
    with pytest.raises(RecipeError, match="no calibration calls"):
        shrink_folder(
            locate(str(folders(DIT))), tmp_path / "out", lambda _: [], {"transformer": RECIPE},
            Placement(), False, silent,
        )  # fmt: skip
    assert list(tmp_path.iterdir()) == []
