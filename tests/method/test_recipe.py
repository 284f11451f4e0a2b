"""Recipes: from words, to JSON and back, and every refusal before any work."""

from __future__ import annotations

import dataclasses
import json
import math
import re

import pytest

from ditprune.errors import RecipeError
from ditprune.method.distill import Distill
from ditprune.method.granularity import CAG, NM, PerChannel, PerLayer
from ditprune.method.recipe import Recipe
from ditprune.method.saliency.power import STW, Magnitude, Power, Wanda
from ditprune.method.saliency.ria import RIA
from ditprune.method.words import build, build_each, from_json

SALIENCIES = [Magnitude(), Wanda(), STW(), Power(3, 0.5), Power(0.5, 1), RIA(), RIA(0.7)]
GRANULARITIES = [PerLayer(), PerChannel(), CAG(), CAG(0.05), CAG(7)]


def through_json(recipe: Recipe) -> Recipe:
    return from_json(json.loads(json.dumps(recipe.to_json())), "recipe.json")


def test_the_default_is_the_papers_method_at_half() -> None:
    assert build() == Recipe() == Recipe(STW(), CAG(), 0.5, (), ())


@pytest.mark.parametrize("granularity", GRANULARITIES, ids=repr)
@pytest.mark.parametrize("saliency", SALIENCIES, ids=repr)
def test_a_recipe_survives_json(saliency, granularity) -> None:
    recipe = Recipe(saliency, granularity, 0.3, ("*.attn1.*",), ("*.to_q", "*.to_k"))
    assert through_json(recipe) == recipe


@pytest.mark.parametrize("pattern", [NM(2, 4), NM(1, 16)], ids=repr)
@pytest.mark.parametrize("saliency", SALIENCIES, ids=repr)
def test_a_recipe_with_a_pattern_survives_json(saliency, pattern) -> None:
    recipe = build(saliency=saliency, pattern=pattern)
    assert recipe == Recipe(saliency, pattern, None)
    assert recipe.to_json()["pattern"] == pattern.name
    assert through_json(recipe) == recipe


def test_a_pattern_given_as_the_granularity_is_the_pattern() -> None:
    """It fixes the count: a sparsity beside it may neither be recorded nor be ignored."""
    recipe = build(granularity=NM(2, 4))
    assert recipe.sparsity is None
    assert through_json(recipe) == recipe
    with pytest.raises(RecipeError, match="sparsity"):
        build(granularity=NM(2, 4), sparsity=0.7)


def test_words_and_objects_say_the_same() -> None:
    assert build(saliency="wanda", granularity="layer", sparsity=0.3) == build(
        saliency=Wanda(), granularity=PerLayer(), sparsity=0.3
    )
    assert build(saliency="power", weight_power=3, activation_power=0) == build(
        saliency=Power(3, 0)
    )
    assert build(saliency="stw", weight_power=2, activation_power=1.0) == build(saliency=STW())
    assert build(saliency="ria", activation_power=1) == build(saliency=RIA(1))
    assert build(cag_threshold=0.7) == build(granularity=CAG(0.7))
    assert build(pattern="2:4") == build(pattern=NM(2, 4))
    assert build(include="*.a") == build(include=["*.a"])


def test_a_recipe_takes_the_words_and_is_checked_when_it_is_made() -> None:
    best = Recipe(sparsity=0.7, preset="best", refinement=Distill(num_steps=4))
    assert best == build(
        sparsity=0.7, preset="best", refinement="distill", refinement_constants={"num_steps": 4}
    )
    assert Recipe(pattern="2:4").pattern == "2:4" == Recipe(granularity=NM(2, 4)).pattern
    assert Recipe().pattern is None
    assert dataclasses.replace(best, sparsity=0.3).refinement == Distill(num_steps=4)
    pattern = Recipe(pattern="2:4")
    assert dataclasses.replace(pattern, include=("*.ff",)).granularity == NM(2, 4)


def test_constants_nest_under_their_axis() -> None:
    recipe = build(saliency="power", weight_power=3, activation_power=0.5, cag_threshold=0.7)
    assert recipe == build(
        saliency={"name": "power", "weight_power": 3, "activation_power": 0.5},
        granularity={"name": "cag", "cag_threshold": 0.7},
    )
    content = recipe.to_json()
    assert content["saliency"] == {"name": "power", "weight_power": 3, "activation_power": 0.5}
    assert content["granularity"] == {"name": "cag", "cag_threshold": 0.7}
    assert not content.keys() & {"weight_power", "activation_power", "cag_threshold"}
    with pytest.raises(RecipeError, match="'weight_power' is given twice"):
        build(saliency={"name": "power", "weight_power": 3}, weight_power=3)
    with pytest.raises(RecipeError, match="already has its constants"):
        build(saliency=Power(3, 1), weight_power=3)


def test_the_flat_form_of_older_manifests_is_read() -> None:
    """Constants stood beside the methods in ditprune.json before they nested."""
    older = {
        "saliency": "stw", "weight_power": 2, "activation_power": 1, "granularity": "cag",
        "cag_threshold": 0.2, "sparsity": 0.5, "pattern": None, "include": [], "exclude": [],
        "auxiliary": False, "reconstruction": "admm", "reconstruction_constants": {"damping": 0.1},
        "mask": "saliency", "allocation": "uniform", "timestep_weighting": "uniform",
        "refinement": "none", "refinement_constants": {}, "packages": 1,
    }  # fmt: skip
    assert from_json(older, "old") == build(
        cag_threshold=0.2, reconstruction={"name": "admm", "damping": 0.1}
    )


def test_each_denoiser_may_have_its_own_value_of_any_word() -> None:
    names = ("transformer", "transformer_2")
    recipes = build_each(
        names, sparsity={"transformer": 0.5, "transformer_2": 0.7},
        saliency={"transformer": "wanda", "transformer_2": {"name": "ria", "activation_power": 1}},
        granularity={"name": "cag", "cag_threshold": 0.2}, include="*.ff",
    )  # fmt: skip
    common = {"cag_threshold": 0.2, "include": "*.ff"}
    assert recipes == {
        "transformer": build(sparsity=0.5, saliency="wanda", **common),
        "transformer_2": build(sparsity=0.7, saliency=RIA(1), **common),
    }
    given = {"transformer": Recipe(sparsity=0.1), "transformer_2": Recipe(pattern="2:4")}
    assert build_each(names, given) == given
    assert build_each(names, given["transformer"])["transformer_2"].sparsity == 0.1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"sparsity": {"transformer": 0.5}}, "sparsity: values for transformer; expected one"),
        ({"sparsity": {"unet": 0.5, "transformer": 0.5}}, "expected one for each denoiser"),
        ({"include": {}}, "include: values for nothing"),
    ],
)
def test_a_mapping_of_other_denoisers_is_refused(words: dict, message: str) -> None:
    with pytest.raises(RecipeError, match=re.escape(message)):
        build_each(("transformer", "transformer_2"), **words)


def test_a_recipe_is_a_value() -> None:
    recipe = build()
    assert hash(recipe) == hash(build())
    with pytest.raises(dataclasses.FrozenInstanceError):
        recipe.sparsity = 0.9


@pytest.mark.parametrize("sparsity", [0, 0.0, 0.999, 1e-9])
def test_sparsities_from_zero_to_below_one_are_taken(sparsity: float) -> None:
    assert build(sparsity=sparsity).sparsity == float(sparsity)


@pytest.mark.parametrize(
    "sparsity", [-0.1, 1, 1.0, 50, math.nan, math.inf, True, False, "0.5", [0.5]]
)
def test_other_sparsities_are_refused(sparsity: object) -> None:
    with pytest.raises(RecipeError, match="^sparsity[= ].*" + re.escape(f"{sparsity}: expected")):
        build(sparsity=sparsity)


REFUSALS = [
    ({"saliency": "wander"}, "saliency='wander' is unknown; did you mean 'wanda'?"),
    ({"saliency": "zzz"}, "'zzz' is unknown; choose from magnitude, power, ria, stw, wanda"),
    ({"saliency": 5}, "saliency=5: expected a name (magnitude, wanda,"),
    ({"saliency": STW}, "expected a name"),
    ({"granularity": "chanel"}, "granularity='chanel' is unknown; did you mean 'channel'?"),
    ({"granularity": "2:4"}, "granularity='2:4' is unknown"),
    ({"granularity": 4}, "granularity=4: expected a name (layer, channel, cag)"),
    ({"saliency": CAG()}, "saliency"),
    ({"granularity": STW()}, "granularity"),
    ({"pattern": "4:2"}, "pattern: 4:2 given"),
    ({"pattern": 2.4}, "pattern: '2.4' given; expected N:M"),
    ({"pattern": "2:4", "sparsity": 0.5}, "sparsity and pattern exclude each other"),
    ({"pattern": "2:4", "sparsity": 0}, "sparsity and pattern exclude each other"),
    ({"pattern": "2:4", "granularity": "layer"}, "granularity and pattern exclude each other"),
    ({"pattern": "2:4", "cag_threshold": 1}, "cag_threshold and pattern exclude each other"),
    ({"saliency": "power"}, "saliency power needs weight_power"),
    ({"saliency": "power", "weight_power": 2}, "saliency power needs activation_power"),
    ({"saliency": "wanda", "weight_power": 2}, "weight_power does not apply to saliency wanda"),
    ({"saliency": "magnitude", "activation_power": 1}, "activation_power does not apply to"),
    ({"saliency": "ria", "weight_power": 1}, "weight_power does not apply to saliency ria"),
    ({"saliency": "stw", "weight_power": 3}, "pass saliency power with both exponents"),
    ({"weight_power": 3}, "weight_power does not apply to saliency stw, whose exponents are"),
    ({"timestep_weighting": "log-increase"}, "did you mean 'log-decrease'?"),
    ({"reconstruction": "admm", "reconstruction_constants": [1]}, "expected a mapping of numbers"),
    ({"reconstruction": "admm", "reconstruction_constants": {"damping": "x"}}, "constants {"),
    ({"sparsty": 0.5}, "'sparsty' is no word of a recipe; did you mean 'sparsity'?"),
    ({"saliency": STW(), "weight_power": 2}, "already has its constants"),
    ({"weight_power": -1}, "weight_power=-1: expected a power from 0 to 16"),
    ({"weight_power": math.nan}, "weight_power nan: expected a power"),
    ({"weight_power": "2"}, "weight_power=2: expected a power"),
    ({"activation_power": True}, "activation_power True: expected a power"),
    ({"activation_power": 17}, "activation_power=17: expected a power"),
    ({"granularity": "layer", "cag_threshold": 1}, "cag_threshold does not apply to"),
    ({"granularity": CAG(), "cag_threshold": 1}, "already has its constants"),
    ({"cag_threshold": -1}, "cag_threshold=-1: expected a number from 0 up"),
    ({"cag_threshold": math.nan}, "cag_threshold nan: expected"),
    ({"cag_threshold": 10**400}, "expected a number from 0 up"),
    ({"cag_threshold": "auto"}, "cag_threshold auto: expected a number from 0 up"),
    ({"cag_threshold": "atuo"}, "cag_threshold atuo: expected"),
    ({"include": [3]}, "include [3]: expected globs"),
    ({"exclude": ["*.a", None]}, "exclude ['*.a', None]: expected globs"),
    ({"include": 3}, "include=3: expected globs"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("words", "message"), REFUSALS, ids=lambda v: str(v) if isinstance(v, dict) else ""
)
def test_what_cannot_be_used_is_refused(words: dict, message: str) -> None:
    with pytest.raises(RecipeError, match=re.escape(message)) as caught:
        build(**words)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"sparsity": 1}, "sparsity=1: expected"),
        ({"granularity": NM(2, 4), "sparsity": 0.5}, "sparsity and pattern exclude each other"),
        ({"saliency": STW}, "saliency <class"),
        ({"saliency": "swt"}, "saliency='swt' is unknown; did you mean 'stw'?"),
        ({"preset": "bets"}, "preset='bets' is unknown"),
        ({"preset": "best", "pattern": "2:4", "sparsity": 0.5}, "exclude each other"),
        ({"max_error": 0}, "max_error=0: expected"),
        ({"max_error": 0.01, "sparsity": 0.5}, "sparsity=0.5 and max_error=0.01 exclude"),
        ({"max_error": 0.01, "pattern": "2:4"}, "max_error and pattern exclude"),
        ({"refinement": 3}, "refinement=3: expected"),
        ({"mask": "reconstruction"}, "mask reconstruction needs a reconstruction"),
        ({"allocation": "even"}, "allocation='even' is unknown"),
        ({"packages": 0}, "packages=0: expected"),
        ({"auxiliary": 1}, "auxiliary=1: expected true or false"),
    ],
)
def test_a_recipe_made_by_hand_is_checked_too(words: dict, message: str) -> None:
    with pytest.raises(RecipeError, match=re.escape(message)):
        Recipe(**words)


def test_a_finished_recipe_stands_alone() -> None:
    recipe = build(sparsity=0.3)
    assert build(recipe) is recipe
    assert build(recipe, sparsity=None) is recipe
    for given, words in [(recipe, {"sparsity": 0.3}), ("stw", {})]:
        with pytest.raises(RecipeError, match="expected a Recipe alone, or words by name"):
            build(given, **words)


@pytest.mark.parametrize("content", [[], "stw", 3, None, [{"saliency": "stw"}]])
def test_json_that_is_no_object_is_refused(content: object) -> None:
    with pytest.raises(RecipeError, match=r"my.json: holds \w+, expected a JSON object"):
        from_json(content, "my.json")


def test_an_unknown_key_is_refused_with_the_nearest() -> None:
    with pytest.raises(
        RecipeError, match=r"my.json: unknown key 'sparsty'; did you mean 'sparsity'\?"
    ):
        from_json({"sparsty": 0.5}, "my.json")


def test_a_refusal_names_the_file_once() -> None:
    with pytest.raises(RecipeError, match=r"^my.json: sparsity=2: expected"):
        from_json({"sparsity": 2}, "my.json")


def test_an_empty_object_is_the_default() -> None:
    assert from_json({}, "my.json") == build()


@pytest.mark.parametrize(
    ("content", "overrides", "expected"),
    [
        ({"sparsity": 0.3}, {"sparsity": 0.6}, build(sparsity=0.6)),
        ({"sparsity": 0.3}, {"sparsity": None}, build(sparsity=0.3)),
        ({"sparsity": 0.3}, {"sparsity": 0}, build(sparsity=0)),
        ({"sparsity": 0.3, "granularity": "layer"}, {"pattern": "2:4"}, build(pattern="2:4")),
        ({"cag_threshold": 0.1}, {"pattern": "2:4"}, build(pattern="2:4")),
        ({"pattern": "2:4"}, {"sparsity": 0.6}, build(sparsity=0.6)),
        ({"pattern": "2:4"}, {"granularity": "layer"}, build(granularity="layer")),
        ({"pattern": "2:4"}, {"cag_threshold": 1.0}, build(cag_threshold=1.0)),
        ({"include": ["*.a"]}, {"include": ["*.b"]}, build(include=["*.b"])),
        ({"saliency": "wanda"}, {"exclude": ["*.b"]}, build(saliency="wanda", exclude=["*.b"])),
    ],
)  # fmt: skip
def test_words_beside_a_file_replace_those_in_it(content, overrides, expected) -> None:
    assert from_json(content, "my.json", **overrides) == expected


def test_options_that_exclude_each_other_do_so_beside_a_file() -> None:
    with pytest.raises(RecipeError, match="exclude each other"):
        from_json({}, "my.json", pattern="2:4", sparsity=0.5)


@pytest.mark.parametrize("saliency", ["magnitude", "wanda", "ria"])
def test_another_saliency_replaces_the_files_with_its_constants(saliency: str) -> None:
    content = build().to_json()
    assert from_json(content, "my.json", saliency=saliency) == build(saliency=saliency)


@pytest.mark.parametrize("granularity", ["layer", "channel"])
def test_another_granularity_replaces_the_files_with_its_constants(granularity: str) -> None:
    content = build().to_json()
    assert from_json(content, "my.json", granularity=granularity) == build(granularity=granularity)


def test_auxiliary_goes_to_json_and_back() -> None:
    recipe = build(auxiliary=True)
    assert recipe.auxiliary
    assert not build().auxiliary
    assert recipe.to_json()["auxiliary"] is True
    assert from_json(recipe.to_json(), "r") == recipe
    assert from_json(recipe.to_json(), "r", auxiliary=None) == recipe
    with pytest.raises(RecipeError, match="auxiliary='yes': expected true or false"):
        build(auxiliary="yes")


@pytest.mark.parametrize(
    "words", [{"saliency": {"name": []}}, {"preset": ["best"]}, {"saliency": {"name": "ria", 1: 2}}]
)
def test_names_that_are_no_text_are_refused(words) -> None:
    with pytest.raises(RecipeError, match=r"unknown|does not apply"):
        Recipe(**words)


def test_a_preset_replaces_the_words_of_a_file_that_presets_stand_for() -> None:
    best = Recipe(preset="best", sparsity=0.7, include=("*.attn1.*",)).to_json()
    paper = Recipe(sparsity=0.7, include=("*.attn1.*",))
    assert from_json(best, "recipe.json", preset="paper") == paper
    with_obs = from_json(best, "recipe.json", preset="paper", reconstruction="obs")
    assert with_obs == Recipe(sparsity=0.7, include=("*.attn1.*",), reconstruction="obs")


@pytest.mark.parametrize(
    ("axis", "constants"),
    [
        ("refinement", {"num_steps": 2.5}),
        ("refinement", {"num_steps": True}),
        ("refinement", {"num_steps": "3"}),
        ("refinement", {"batch_size": 1.5}),
        ("refinement", {"seed": "x"}),
        ("refinement", {"seed": 2**70}),
        ("refinement", {"seed": None}),
        ("refinement", {"learning_rate": "x"}),
        ("refinement", {"learning_rate": float("inf")}),
        ("refinement", {"block_weight": float("inf")}),
        ("refinement", {"block_weight": float("nan")}),
        ("refinement", {"mixing": [1]}),
        ("refinement", {"held_back": {}}),
        ("reconstruction", {"num_steps": 2.5}),
        ("reconstruction", {"num_support_steps": 1.0}),
        ("reconstruction", {"damping": float("nan")}),
        ("reconstruction", {"penalty": True}),
        ("reconstruction", {"penalty": 10**400}),
        ("reconstruction", "ab"),
    ],
    ids=str,
)
def test_constants_of_a_wrong_type_are_refused(axis: str, constants: object) -> None:
    method = {"refinement": "distill", "reconstruction": "admm"}[axis]
    with pytest.raises(RecipeError) as error:
        from_json({axis: method, f"{axis}_constants": constants}, "r.json")
    assert str(error.value).startswith("r.json: ")
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 300


def test_constants_that_are_whole_floats_or_none_are_taken() -> None:
    recipe = from_json(
        {
            "refinement": "distill",
            "refinement_constants": {"learning_rate": None, "mixing": 0, "block_weight": 2},
        },
        "r.json",
    )
    assert recipe.refinement.block_weight == 2
