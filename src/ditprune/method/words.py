"""How do words become a recipe? By name in Python, as options, or as the keys of a JSON object."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import fields
from typing import Any, TypeVar

from ditprune.errors import RecipeError, did_you_mean
from ditprune.method.choices import AXES, PRESETS, constant_words, flag, nested, preset_words
from ditprune.method.recipe import Recipe, excluded_by_pattern

Made = TypeVar("Made")
# The words of grouping by share; a pattern replaces them.
_BY_SHARE = {"sparsity", "granularity", "cag_threshold", "max_error"}


def words_of_recipes() -> tuple[str, ...]:
    """Every word, as `build` takes them and as the JSON form may hold them."""
    axes = (f"{axis}_constants" for axis in ("reconstruction", "refinement"))
    return (*(part.name for part in fields(Recipe)), *constant_words(), *axes, "pattern", "preset")


def build(recipe: Recipe | None = None, /, **words: Any) -> Recipe:
    """A recipe from words, which `Recipe` explains; None leaves a word out.

    Constants may also stand beside the method, as in `saliency="ria", activation_power=1`. A
    finished recipe is returned as it is; no word may stand beside it.

    Raises RecipeError for unknown words and names, and for all that a `Recipe` refuses.
    """
    known = words_of_recipes()
    for word in words:
        if word not in known:
            raise RecipeError(f"'{word}' is no word of a recipe; {did_you_mean(word, known)}")
    given = {word: value for word, value in words.items() if value is not None}
    if recipe is not None:
        if given or not isinstance(recipe, Recipe):
            raise RecipeError(
                f"recipe: {recipe!r} and {given} given; expected a Recipe alone, or words by name"
            )
        return recipe
    if "pattern" in given:
        for word in given.keys() & {"granularity", "cag_threshold"}:
            raise excluded_by_pattern(word)
    return Recipe(**nested(given))


def build_each(
    denoisers: Collection[str], recipe: Recipe | Mapping[str, Recipe] | None = None, /,
    **words: Any,
) -> dict[str, Recipe]:  # fmt: skip
    """The recipe of each denoiser: any word, and the recipe, may be a mapping by denoiser.

    Raises RecipeError for a mapping of other denoisers, and for all that `build` refuses.
    """
    return each_of(build, denoisers, recipe, **words)


def each_of(
    make: Callable[..., Made], denoisers: Collection[str], recipe: Any = None, /, **words: Any
) -> dict[str, Made]:
    """As `build_each`, of recipes that `make` makes of a recipe or of words."""
    if isinstance(recipe, Mapping):
        _check_denoisers("recipe", recipe, denoisers)
    for word, value in words.items():
        if is_by_denoiser(word, value):
            _check_denoisers(word, value, denoisers)
    return {
        name: make(
            recipe[name] if isinstance(recipe, Mapping) else recipe,
            **{w: v[name] if is_by_denoiser(w, v) else v for w, v in words.items()},
        )
        for name in denoisers
    }


def is_by_denoiser(word: str, value: Any) -> bool:
    """Whether a word's value is a mapping from denoiser to value, not a method's constants."""
    if not isinstance(value, Mapping) or word.endswith("_constants"):
        return False
    return word not in AXES or "name" not in value


def _check_denoisers(word: str, given: Mapping[str, Any], denoisers: Collection[str]) -> None:
    if given.keys() != set(denoisers):
        raise RecipeError(
            f"{flag(word)}: values for {', '.join(map(str, given)) or 'nothing'}; expected one for "
            f"each denoiser ({', '.join(denoisers)})"
        )


def from_json(content: Any, source: str, **overrides: Any) -> Recipe:
    """The recipe that `to_json` wrote, with some words replaced; an override of None does nothing.

    Raises RecipeError that names `source`.
    """
    if not isinstance(content, Mapping):
        raise RecipeError(f"{source}: holds {type(content).__name__}, expected a JSON object")
    known = words_of_recipes()
    for key in (*content, *overrides):
        if key not in known:
            raise RecipeError(f"{source}: unknown key '{key}'; {did_you_mean(str(key), known)}")
    try:
        return Recipe(**_overridden(content, overrides))
    except RecipeError as error:
        raise RecipeError(f"{source}: {error}") from None


def _overridden(content: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Words in which a new method drops the constants of the old one, a share a pattern, …"""
    given = {word: value for word, value in overrides.items() if value is not None}
    replaced: set[str] = set()
    if "preset" in given:
        replaced = {word for preset in PRESETS.values() for word in preset}
        is_pattern = bool(given.get("pattern") or content.get("pattern"))
        given = preset_words(given.pop("preset"), is_pattern) | given
    left = {word: value for word, value in content.items() if value is not None}
    stays = {word: value for word, value in nested(left).items() if word not in replaced}
    if "pattern" in given:
        stays = {word: value for word, value in stays.items() if word not in _BY_SHARE}
    elif given.keys() & _BY_SHARE:
        stays.pop("pattern", None)
    if given.keys() & {"sparsity", "max_error"}:
        stays = {w: value for w, value in stays.items() if w not in ("sparsity", "max_error")}
    for word, value in nested(given).items():
        is_constants = word in AXES and isinstance(value, Mapping) and "name" not in value
        stays[word] = {**stays.get(word, {}), **value} if is_constants else value
    return stays
