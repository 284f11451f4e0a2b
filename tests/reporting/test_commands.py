"""The commands that make a model again: they give what its manifest holds, no more and no less."""

from __future__ import annotations

import dataclasses
import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from ditprune.calibration.sample import Sampling
from ditprune.cli.calibrate import calibrate
from ditprune.cli.options import read_labels, read_pipeline_options, read_prompts
from ditprune.cli.prune import prune
from ditprune.cli.recipe_options import read_recipe
from ditprune.method.distill import Distill
from ditprune.method.recipe import Recipe
from ditprune.method.reconstruction.admm import ADMM
from ditprune.method.words import build
from ditprune.reporting.commands import _is_plausible, repeat_commands

RECIPES: list[dict[str, Any]] = [
    {},
    {"saliency": "magnitude", "granularity": "layer", "sparsity": 0.3},
    {"saliency": "power", "weight_power": 2.0, "activation_power": 1.0},
    {"saliency": "ria"},
    {"saliency": "ria", "activation_power": 1.0},
    {"pattern": "2:4", "saliency": "wanda"},
    {"pattern": "4:8", "preset": "best"},
    {"include": ("*.attn1.*", "-*.ff.*"), "exclude": ("*.to_q", "two words"), "auxiliary": True},
    {"preset": "best"},
    {"preset": "best", "sparsity": 0.7, "packages": 4},
    {"cag_threshold": 0.5},
    {"cag_threshold": 0.25, "timestep_weighting": "log-decrease"},
    {"allocation": "owl"},
    {"allocation": "sensitivity"},
    {"allocation": "proxy", "saliency": "magnitude"},
    {"reconstruction": "obs", "packages": 3},
    {"reconstruction": "admm", "mask": "reconstruction", "refinement": "distill"},
    {"reconstruction": ADMM(num_steps=40)},
    {"preset": "best", "refinement": Distill(num_steps=7)},
    {"preset": "fast"},
    {"max_error": 0.01},
    {"blocks": ("double_blocks.*", "-*.layers")},
]
STATISTICS = {"num_calls": 9, "protocol": {}}
SAMPLINGS: list[dict[str, Any]] = [
    {},
    {"num_samples": 64, "timesteps": "early", "batch_size": 4, "num_bins": 5, "seed": 3},
    {"num_inference_steps": 20, "guidance_scale": 4.5, "height": 512, "width": 768},
    {"labels": (207, 360), "pipeline_options": {"num_frames": 17, "word": "a b", "on": True}},
    {"prompts": ("a cat", "a dog, two words")},
]


def prune_line(recipe: Recipe) -> list[str]:
    """The words of its `ditprune prune`."""
    _, line = repeat_commands("some model", "out", {"recipe": recipe.to_json()})
    assert line is not None
    return shlex.split(line)


def params(command: Any, words: list[str]) -> dict[str, Any]:
    """What the verb itself gets of a line."""
    assert words[:2] == ["ditprune", command.name]
    return dict(command.make_context(command.name, words[2:]).params)


def options_of(command: Any) -> set[str]:
    return {one.name for one in command.params}


@pytest.mark.parametrize("words", RECIPES, ids=str)
def test_the_command_gives_the_recipe(
    words: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With ditprune.json at hand, as it lies beside the weights."""
    recipe = build(**words)
    text = json.dumps({"recipe": recipe.to_json(), "targets": {}})
    (tmp_path / "ditprune.json").write_text(text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    line = prune_line(recipe)
    given = params(prune, line)
    assert read_recipe(given["recipe"])["recipe"] == recipe
    assert (given["set_folder"] is not None) == recipe.needs_calls
    calls = ["--calibration-set", "calls"] if recipe.needs_calls else []
    words = ["ditprune", "prune", "some model", "-o", "out", *calls, "--recipe", "ditprune.json"]
    assert line == words


def test_no_word_of_a_recipe_is_forgotten() -> None:
    """Every field of a recipe differs from its default in some recipe above."""
    recipes = [build(**words) for words in RECIPES]
    moved = {
        one.name
        for one in dataclasses.fields(Recipe)
        if any(getattr(recipe, one.name) != getattr(Recipe(), one.name) for recipe in recipes)
    }
    assert moved == {one.name for one in dataclasses.fields(Recipe)}


@pytest.mark.parametrize(
    "recipe",
    [
        None, [], {"saliency": "mine"}, {"later": 1}, {"pattern": 3},
        build().to_json() | {"later": 1}, build().to_json() | {"reconstruction": ["admm"]},
        build(pattern="2:4").to_json() | {"pattern": 3},
    ],
    ids=str,
)  # fmt: skip
def test_a_recipe_that_the_command_line_does_not_know_has_no_command(recipe: Any) -> None:
    assert repeat_commands("m", "o", {"recipe": recipe, "statistics": STATISTICS}) == (None, None)


@pytest.mark.parametrize("words", SAMPLINGS, ids=str)
@pytest.mark.parametrize("preset", ["paper", "best"])
def test_the_calibration_is_told_too(words: dict[str, Any], preset: str, tmp_path: Path) -> None:
    sampling, recipe = Sampling(**words), build(preset=preset)
    protocol = sampling.protocol("APipeline", "AScheduler")
    claims = {"recipe": recipe.to_json(), "statistics": {"num_calls": 9, "protocol": protocol}}
    first, second = repeat_commands("some model", "out", claims)
    assert first is not None
    assert second is not None
    own, other = params(calibrate, shlex.split(first)), params(prune, shlex.split(second))
    assert own["model"] == other["model"] == "some model"
    assert own["out"] == other["statistics"] == Path("stats.safetensors")
    assert own["set_folder"] == other["set_folder"] == (Path("calls") if preset == "best" else None)
    (tmp_path / "prompts.txt").write_text("\n".join(words.get("prompts", ())), encoding="utf-8")
    file = own["prompts"] and tmp_path / own["prompts"]
    again = Sampling(**{
        one.name: own[one.name] for one in dataclasses.fields(Sampling) if one.name in own
    } | {
        "labels": read_labels(own["labels"]),
        "prompts": read_prompts(file),
        "pipeline_options": read_pipeline_options(own["pipeline_options"]),
    })  # fmt: skip
    assert again == sampling


def test_no_word_of_a_calibration_is_forgotten() -> None:
    moved = {word for words in SAMPLINGS for word in words}
    assert moved == {one.name for one in dataclasses.fields(Sampling)} - {"purpose"}
    assert moved <= options_of(calibrate)


@pytest.mark.parametrize(
    "statistics",
    [
        None, {}, {"protocol": {}}, {"protocol": None}, [], 3, {"protocol": {"num_samples": 0}},
        {"protocol": {"num_samples": "9"}}, {"protocol": {"timesteps": []}},
        {"protocol": {"purpose": "held-out"}}, {"protocol": {"labels": 3}},
        {"protocol": {"pipeline_options": ["a"]}},
    ],
    ids=str,
)  # fmt: skip
def test_a_calibration_that_is_not_known_is_not_told(statistics: Any) -> None:
    """As of `ditprune.calibrate` in Python, or of a manifest that someone edited."""
    first, second = repeat_commands(
        "m", "o", {"recipe": build().to_json(), "statistics": statistics}
    )
    assert first is None
    assert second is not None
    assert ("--statistics" in second) == (statistics is not None)


def test_every_field_of_a_calibration_has_a_kind() -> None:
    """Else the command of every calibration would be left out in silence."""
    assert all(_is_plausible(part, None) for part in dataclasses.fields(Sampling))
