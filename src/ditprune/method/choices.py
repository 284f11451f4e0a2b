"""From the words of a command line or a file, or from objects, to the choice that is meant."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from ditprune.errors import RecipeError, did_you_mean
from ditprune.method.saliency.power import check_powers

_POWERS = ("weight_power", "activation_power")
# What an object must have to stand for a name, one of these sets.
_PROTOCOLS = {
    "saliency": [("name", "needs", "__call__")],
    "granularity": [("name", "group_shape", "num_keep"), ("name", "threshold", "choose")],
}


def choose(
    option: str, choices: Mapping[str, Any], given: Any, constants: Mapping[str, Any]
) -> Any:
    """The choice by name with its constants, or the object itself."""
    wanted = {name: value for name, value in constants.items() if value is not None}
    if not isinstance(given, str):
        if isinstance(given, type) or not any(
            all(hasattr(given, attribute) for attribute in one) for one in _PROTOCOLS[option]
        ):
            raise RecipeError(
                f"{flag(option)} {given!r}: expected a name ({', '.join(choices)}) "
                f"or an object such as {next(iter(choices.values())).__name__}()"
            )
        if wanted:
            raise RecipeError(
                f"{flag(next(iter(wanted)))}: {given!r} already has its constants; set them there"
            )
        return given
    if given not in choices:
        raise RecipeError(f"{flag(option)} '{given}' is unknown; {did_you_mean(given, choices)}")
    fields = {one.name: one for one in dataclasses.fields(choices[given])}
    check_powers(**{n: v for n, v in wanted.items() if n in _POWERS})
    for name in wanted:
        if name not in fields:
            raise RecipeError(f"{flag(name)} does not apply to --{option} {given}; leave it out")
    for name, constant in fields.items():
        if constant.default is dataclasses.MISSING and name not in wanted:
            raise RecipeError(f"--{option} {given} needs {flag(name)}")
    return choices[given](**wanted)


def threshold_of(given: float | str | None) -> float | str | None:
    """A threshold from the command line, where numbers are text, or from JSON."""
    if given is None or given == "auto":
        return given
    try:
        if not isinstance(given, (int, float, str)) or isinstance(given, bool):
            raise ValueError
        number = float(given)
        return number if isinstance(given, str) else given
    except (ValueError, OverflowError):
        raise RecipeError(
            f"--cag-threshold {given}: expected a number from 0 up, or 'auto'"
        ) from None


def globs(option: str, given: str | Sequence[str] | None) -> tuple[str, ...]:
    patterns = (given,) if isinstance(given, str) else () if given is None else given
    if not isinstance(patterns, Sequence) or not all(isinstance(p, str) for p in patterns):
        raise RecipeError(f"--{option} {given!r}: expected globs such as '*.attn1.to_q'")
    return tuple(patterns)


def constants_of(choice: Any) -> dict[str, Any]:
    is_instance = dataclasses.is_dataclass(choice) and not isinstance(choice, type)
    return dataclasses.asdict(choice) if is_instance else {}


def flag(option: str) -> str:
    return "--" + option.replace("_", "-")


def method_of(
    option: str, choices: Mapping[str, Any], given: Any, constants: Mapping[str, Any] | None
) -> Any:
    """A method by name with its constants, or the object itself; the first choice for None."""
    given = next(iter(choices)) if given is None else given
    if not isinstance(given, str):
        if isinstance(given, type) or not hasattr(given, "name"):
            raise RecipeError(
                f"{flag(option)} {given!r}: expected a name ({', '.join(choices)}) or an object"
            )
        if constants:
            raise RecipeError(f"{flag(option)}: {given!r} already has its constants")
        return given
    if given not in choices:
        raise RecipeError(f"{flag(option)} '{given}' is unknown; {did_you_mean(given, choices)}")
    if choices[given] is None:
        if constants:
            raise RecipeError(f"{flag(option)} {given} takes no constants; leave them out")
        return None
    try:
        return choices[given](**dict(constants or {}))
    except TypeError:
        known = [one.name for one in dataclasses.fields(choices[given])]
        raise RecipeError(
            f"{flag(option)} {given}: constants {dict(constants or {})}; expected numbers for "
            f"some of {', '.join(known) or 'none'}"
        ) from None
