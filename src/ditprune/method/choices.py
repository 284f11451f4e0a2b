"""What does one word of a recipe stand for? Words that stand for nothing are refused."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from ditprune.errors import RecipeError, did_you_mean
from ditprune.method.granularity import check_threshold
from ditprune.method.saliency.power import check_powers

_POWERS = ("weight_power", "activation_power")
# The words that a preset stands for; the others keep their defaults.
PRESETS: dict[str, dict[str, Any]] = {
    "paper": {},
    "best": {
        "reconstruction": "admm",
        "mask": "refinement",
        "allocation": "sensitivity",
        "refinement": "distill",
    },
}
# An object stands for a name if it has all attributes of one of these sets.
_ATTRIBUTES: dict[str, list[tuple[str, ...]]] = {
    "saliency": [("name", "needs", "__call__")],
    "granularity": [("name", "group_shape", "num_keep"), ("name", "choose")],
    "reconstruction": [("name", "needs", "__call__")],
}


def flag(word: str) -> str:
    """`weight_power` → `--weight-power`."""
    return "--" + word.replace("_", "-")


def constants_of(choice: Any) -> dict[str, Any]:
    """The constants of a method; none for None and for an object that is no dataclass."""
    is_instance = dataclasses.is_dataclass(choice) and not isinstance(choice, type)
    return dataclasses.asdict(choice) if is_instance else {}


def choose(word: str, methods: Mapping[str, Any], given: Any, constants: Mapping[str, Any]) -> Any:
    """The method of this name, made with its constants; anything but a name is returned as it is.

    Raises RecipeError for an unknown name, and for a constant that is missing or does not apply.
    """
    if not isinstance(constants, Mapping):
        raise RecipeError(f"{flag(word)}: constants {constants!r}; expected a mapping of numbers")
    if not isinstance(given, str):
        if constants:
            raise RecipeError(f"{flag(word)}: {given!r} already has its constants; set them there")
        return given
    check_name(word, methods, given)
    if methods[given] is None:
        if constants:
            raise RecipeError(f"{flag(word)} {given} takes no constants; leave them out")
        return None
    fields = {constant.name: constant for constant in dataclasses.fields(methods[given])}
    check_powers(**{name: value for name, value in constants.items() if name in _POWERS})
    check_threshold(constants.get("cag_threshold", 0))
    for name, value in constants.items():
        shown = flag(name) if word in ("saliency", "granularity") else f"constant '{name}'"
        if name not in fields:
            raise RecipeError(f"{shown} does not apply to {flag(word)} {given}; leave it out")
        if not fields[name].init and value != fields[name].default:
            raise RecipeError(
                f"{shown} does not apply to {flag(word)} {given}, whose exponents are fixed; pass "
                "--saliency power with both exponents"
            )
    for name, constant in fields.items():
        if constant.default is dataclasses.MISSING and name not in constants:
            raise RecipeError(f"{flag(word)} {given} needs {flag(name)}")
    try:
        return methods[given](**{n: value for n, value in constants.items() if fields[n].init})
    except TypeError:
        raise RecipeError(
            f"{flag(word)} {given}: constants {dict(constants)}; expected numbers for some of "
            f"{', '.join(fields)}"
        ) from None


def preset_words(preset: Any, is_pattern: bool) -> dict[str, Any]:
    """The words that a preset stands for. Raises RecipeError for an unknown one."""
    check_name("preset", PRESETS, preset)
    words = PRESETS[preset]
    # N:M fixes the count of every layer and leaves nothing to remove later.
    with_pattern = {"allocation": "uniform", "mask": "reconstruction"} if is_pattern else {}
    return {word: with_pattern.get(word, value) for word, value in words.items()}


def check_name(word: str, known: Collection[str], given: Any) -> None:
    """Raises RecipeError for an unknown name."""
    if given not in known:
        raise RecipeError(f"{flag(word)} '{given}' is unknown; {did_you_mean(str(given), known)}")


def check_object(word: str, methods: Mapping[str, Any], given: Any) -> None:
    """Raises RecipeError for an object that cannot stand in for one of these methods."""
    is_usable = not isinstance(given, type) and any(
        all(hasattr(given, attribute) for attribute in needed) for needed in _ATTRIBUTES[word]
    )
    if not is_usable:
        raise RecipeError(
            f"{flag(word)} {given!r}: expected a name ({', '.join(methods)}) "
            f"or an object such as {next(iter(methods.values())).__name__}()"
        )


def as_share(sparsity: Any) -> float:
    """The sparsity as a float. Raises RecipeError unless 0 ≤ sparsity < 1."""
    is_number = isinstance(sparsity, (int, float)) and not isinstance(sparsity, bool)
    if not is_number or not 0 <= sparsity < 1:
        raise RecipeError(
            f"--sparsity {sparsity}: expected the removed share, 0 ≤ sparsity < 1, as in 0.5"
        )
    return float(sparsity)


def as_globs(word: str, given: Any) -> tuple[str, ...]:
    """One glob or several as a tuple. Raises RecipeError for anything that is no text."""
    patterns = (given,) if isinstance(given, str) else given
    if not isinstance(patterns, Sequence) or not all(isinstance(p, str) for p in patterns):
        raise RecipeError(f"--{word} {given!r}: expected globs such as '*.attn1.to_q'")
    return tuple(patterns)
