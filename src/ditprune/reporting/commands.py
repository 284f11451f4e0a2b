"""Command lines that repeat what was done: from a manifest, or from what Python was given."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from decimal import Decimal
from typing import Any

from ditprune.calibration.sample import Sampling
from ditprune.errors import RecipeError
from ditprune.method.choices import flag
from ditprune.method.recipe import Recipe, from_json
from ditprune.writing.output import MANIFEST

# What the commands call the files that pass from one to the next.
STATISTICS, CALLS, PROMPTS = "stats.safetensors", "calls", "prompts.txt"
MASK = "mask.safetensors"
# Fields whose option has another name; of some, each value is an option of its own.
_NAMES = {"names": "metrics", "layers": "include", "pipeline_options": "pipeline_option"}
_REPEATED = ("layers", "pipeline_options")
# Every text that is no recipe, or no protocol, whoever wrote it.
_UNREADABLE = (RecipeError, TypeError, ValueError)


def commands(
    dense: str, out: str, claims: Mapping[str, Any], by_file: bool = False
) -> tuple[str | None, str | None]:
    """The `ditprune calibrate` and the `ditprune prune` that make `out` of `dense`.

    Of a model that another one's mask was put onto, that `ditprune mask apply` alone: its recipe
    is the other's, and would remove other weights here.

    Args:
        claims: of a manifest, its `recipe`, its `statistics` and its `mask`.
        by_file: give the recipe as `--recipe ditprune.json`, not as flags; so is one that holds
            constants for which there is no flag.

    Returns:
        None in place of a command that cannot be told: the second where a recipe holds choices
        that the command line does not know, the first also where the manifest does not say how
        its statistics were made.
    """
    if claims.get("mask"):
        return None, shlex.join(["ditprune", "mask", "apply", dense, MASK, "-o", out])
    recipe, stats = _recipe(claims.get("recipe")), claims.get("statistics")
    if recipe is None:
        return None, None
    calls = ["--calibration-set", CALLS] if recipe.needs_calls else []
    made = None if stats is None else _sampling(stats)
    calibrate, prune = ["ditprune", "calibrate", dense], ["ditprune", "prune", dense, "-o", out]
    if stats is not None:
        prune += ["--statistics", STATISTICS]
    flags = None if by_file else _recipe_flags(recipe)
    prune += [*calls, *(["--recipe", MANIFEST] if flags is None else flags)]
    if made is None:
        return None, shlex.join(prune)
    return shlex.join([*calibrate, "-o", STATISTICS, *calls, *made]), shlex.join(prune)


def options_of(given: Any, plain: Any) -> Iterator[str]:
    """The options that make a dataclass of them from its defaults.

    Prompts stand as `prompts.txt`, a file with one in each line.
    """
    for field in fields(given):
        value = getattr(given, field.name)
        if value == getattr(plain, field.name):
            continue
        for text in _texts(field.name, value):
            yield from (flag(_NAMES.get(field.name, field.name)), text)


def _texts(name: str, value: Any) -> list[str]:
    """What stands after an option, once or each time it is given."""
    if name == "prompts":
        return [PROMPTS]
    if name == "max_memory":
        return [f"{Decimal(value) / 1000}KB"]
    if isinstance(value, Mapping):
        return [f"{key}={json.dumps(one, default=str)}" for key, one in value.items()]
    if isinstance(value, (tuple, list)):
        texts = [str(one) for one in value]
        return texts if name in _REPEATED else [",".join(texts)]
    return [str(value).removeprefix("torch.")]


def _recipe(content: Any) -> Recipe | None:
    try:
        return from_json(content, MANIFEST)
    except _UNREADABLE:
        return None


def _recipe_flags(recipe: Recipe) -> list[str] | None:
    """What differs from the defaults; None where something has no flag."""
    plain = Recipe().to_json() | _constants(recipe.saliency) | _constants(recipe.granularity)
    for word in ("reconstruction", "refinement"):
        plain[f"{word}_constants"] = _constants(getattr(recipe, word))
    flags: list[str] = []
    for word, value in recipe.to_json().items():
        if value is not None and value != plain.get(word):
            if isinstance(value, Mapping):
                return None
            flags += _words(word, value)
    return flags


def _constants(choice: Any) -> dict[str, Any]:
    """The constants that a choice has by default; MISSING for one that must be given."""
    return {one.name: one.default for one in fields(choice)} if is_dataclass(choice) else {}


def _sampling(stats: Mapping[str, Any]) -> list[str] | None:
    """The flags of `calibrate`, from the `statistics` of a manifest; None where it knows none."""
    try:
        protocol = dict(stats["protocol"])
        known: dict[str, Any] = {
            word: tuple(value) if isinstance(value, list) else value
            for word, value in protocol.items()
            if word in Sampling.__dataclass_fields__
        }
        own = Sampling(**known)
        is_known = bool(known) and own.purpose == Sampling.purpose
        is_whole = isinstance(own.labels or (), tuple) and isinstance(own.pipeline_options, Mapping)
        return list(options_of(own, Sampling())) if is_known and is_whole else None
    except (*_UNREADABLE, KeyError, AttributeError):
        return None


def _words(word: str, value: Any) -> list[str]:
    """`--word value`, once for each of several; a switch has no value."""
    if value is True:
        return [flag(word)]
    return [part for one in _each(value) for part in (flag(word), f"{one}")]


def _each(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
