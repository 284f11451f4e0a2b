"""What does one word of a recipe stand for? Words that stand for nothing are refused."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from ditprune.errors import RecipeError, did_you_mean
from ditprune.method.distill import REFINEMENTS
from ditprune.method.granularity import GRANULARITIES, check_threshold
from ditprune.method.reconstruction import RECONSTRUCTIONS
from ditprune.method.saliency import SALIENCIES
from ditprune.method.saliency.power import check_powers
from ditprune.method.statistics.column_norm import ColumnNorm
from ditprune.method.statistics.gram import Gram

_LARGEST_ERROR = 1e6  # relative; beyond it is a slip
_POWERS = ("weight_power", "activation_power")
# The axes of choice: by word, the methods by name. The first entry is not the default.
AXES: dict[str, Mapping[str, Any]] = {
    "saliency": SALIENCIES,
    "granularity": GRANULARITIES,
    "reconstruction": RECONSTRUCTIONS,
    "refinement": REFINEMENTS,
}
# The axes whose constants are also words of their own, as in `weight_power=2`.
_FLAT = ("saliency", "granularity")
_FLAT_CONSTANTS = {"tail": "refinement"}
# The words that a preset stands for; the others keep their defaults.
PRESETS: dict[str, dict[str, Any]] = {
    "paper": {},
    "fast": {
        "reconstruction": "admm",
        "mask": "reconstruction",
        "allocation": "proxy",
        "objective": "output",
        "granularity": "layer",  # rows are weighed, so that they can compete
    },
    "best": {
        "reconstruction": "admm",
        "mask": "refinement",
        "allocation": "proxy",
        "objective": "output",
        "granularity": "layer",
        "refinement": "distill",
    },
}
# In place of those, with N:M: of two penalties half the default's gave the smaller error.
_WITH_PATTERN: dict[str, Any] = {
    "allocation": "uniform",
    "mask": "reconstruction",
    "reconstruction": {"name": "admm", "penalty": 0.5},
}
# An object stands for a name if it has all attributes of one of these sets.
_ATTRIBUTES: dict[str, list[tuple[str, ...]]] = {
    "saliency": [("name", "needs", "__call__")],
    "granularity": [("name", "group_shape", "num_keep"), ("name", "choose")],
    "reconstruction": [("name", "needs", "__call__")],
    "refinement": [("name", "num_steps")],
}
# The statistics that a method of an axis can ask for.
_STATISTICS: dict[str, frozenset[type]] = {
    "saliency": frozenset({ColumnNorm}),
    "reconstruction": frozenset({ColumnNorm, Gram}),
}


def flag(word: str) -> str:
    """`weight_power` → `--weight-power`."""
    return "--" + word.replace("_", "-")


def constants_of(method: Any) -> dict[str, Any]:
    """The constants that a method can be made with; none for an object that is no dataclass."""
    if not dataclasses.is_dataclass(method) or isinstance(method, type):
        return {}
    return {part.name: getattr(method, part.name) for part in dataclasses.fields(method)
            if part.init}  # fmt: skip


def constant_words() -> dict[str, str]:
    """The words that are a constant of some method, each with its axis."""
    return _FLAT_CONSTANTS | {
        constant.name: axis
        for axis in _FLAT
        for method in AXES[axis].values()
        for constant in dataclasses.fields(method)
    }


def nested(words: Mapping[str, Any]) -> dict[str, Any]:
    """The words with every constant inside the value of its axis.

    An axis is then an object, or a mapping with the method's `name`, if that was given, and its
    constants: `{"saliency": "ria", "activation_power": 1}` gives
    `{"saliency": {"name": "ria", "activation_power": 1}}`.

    Raises RecipeError for constants without a name, beside an object, or twice.
    """
    axis_of = constant_words()
    rest = {word: value for word, value in words.items() if word not in axis_of}
    constants: dict[str, dict[str, Any]] = {axis: {} for axis in AXES}
    for axis, given in constants.items():
        for word, value in _mapping(axis, rest.pop(f"{axis}_constants", {})).items():
            given[word] = value
    for word in words.keys() & axis_of.keys():
        constants[axis_of[word]][word] = words[word]
    for axis, given in constants.items():
        method = rest.get(axis)
        method = {"name": method} if isinstance(method, str) else method
        if isinstance(method, Mapping):
            if "name" not in method:
                raise RecipeError(
                    f"{flag(axis)} {dict(method)!r}: expected a name, alone or as 'name' beside "
                    "its constants"
                )
            for word in given.keys() & method.keys():
                raise RecipeError(f"{flag(axis)}: '{word}' is given twice; leave one out")
            rest[axis] = {**method, **given}
        elif method is None and given:
            rest[axis] = given
        elif given:
            raise RecipeError(f"{flag(axis)}: {method!r} already has its constants; set them there")
    return rest


def choose(axis: str, given: Any, default: str) -> Any:
    """The method that a value stands for: a name, a mapping as in `nested`, or an object.

    Raises RecipeError for an unknown name, and for a constant that is missing or does not apply.
    """
    given = {"name": given} if isinstance(given, str) else given
    if not isinstance(given, Mapping):
        check_object(axis, given)
        return given
    constants = {"name": default, **given}
    name, methods = constants.pop("name"), AXES[axis]
    check_name(axis, methods, name)
    if methods[name] is None:
        if constants:
            raise RecipeError(f"{flag(axis)} {name} takes no constants; leave them out")
        return None
    fields = {constant.name: constant for constant in dataclasses.fields(methods[name])}
    _check_constants(axis, name, constants, fields)
    try:
        return methods[name](**{n: value for n, value in constants.items() if fields[n].init})
    except TypeError:
        raise RecipeError(
            f"{flag(axis)} {name}: constants {constants}; expected numbers for some of "
            f"{', '.join(fields)}"
        ) from None


def _check_constants(
    axis: str, name: str, constants: Mapping[str, Any], fields: Mapping[str, Any]
) -> None:
    check_powers(**{word: value for word, value in constants.items() if word in _POWERS})
    check_threshold(constants.get("cag_threshold", 0))
    for word, value in constants.items():
        shown = flag(str(word)) if axis in _FLAT else f"constant '{word}'"
        if word not in fields:
            raise RecipeError(f"{shown} does not apply to {flag(axis)} {name}; leave it out")
        if not fields[word].init and value != fields[word].default:
            raise RecipeError(
                f"{shown} does not apply to {flag(axis)} {name}, whose exponents are fixed; pass "
                "--saliency power with both exponents"
            )
    for word, constant in fields.items():
        if constant.default is dataclasses.MISSING and word not in constants:
            raise RecipeError(f"{flag(axis)} {name} needs {flag(word)}")


def preset_words(preset: Any, is_pattern: bool) -> dict[str, Any]:
    """The words that a preset stands for. Raises RecipeError for an unknown one."""
    check_name("preset", PRESETS, preset)
    words = PRESETS[preset]
    # N:M fixes the count of every layer and leaves nothing to remove later.
    with_pattern = _WITH_PATTERN if is_pattern else {}
    excluded = {"granularity"} if is_pattern else set()
    return {
        word: with_pattern.get(word, value) for word, value in words.items() if word not in excluded
    }


def with_preset(preset: Any, words: Mapping[str, Any], is_pattern: bool) -> dict[str, Any]:
    """The words of a preset, and these words over them; constants alone go to its own method."""
    merged = preset_words(preset, is_pattern)
    for word, value in words.items():
        is_constants = isinstance(value, Mapping) and "name" not in value
        before = merged.get(word) if is_constants else None
        before = {"name": before} if isinstance(before, str) else before
        merged[word] = {**before, **value} if before else value
    return merged


def check_name(word: str, known: Collection[str], given: Any) -> None:
    """Raises RecipeError for an unknown name."""
    if not isinstance(given, str) or given not in known:
        raise RecipeError(f"{flag(word)} '{given}' is unknown; {did_you_mean(str(given), known)}")


def check_object(axis: str, given: Any) -> None:
    """Raises RecipeError for an object that cannot stand in for a method of this axis."""
    is_usable = not isinstance(given, type) and any(
        all(hasattr(given, attribute) for attribute in needed) for needed in _ATTRIBUTES[axis]
    )
    if not is_usable:
        methods = AXES[axis]
        example = next(method for method in methods.values() if method is not None)
        raise RecipeError(
            f"{flag(axis)} {given!r}: expected a name ({', '.join(methods)}) "
            f"or an object such as {example.__name__}()"
        )
    known = _STATISTICS.get(axis, frozenset())
    for statistic in getattr(given, "needs", ()):
        if statistic not in known:
            names = ", ".join(sorted(kind.__name__ for kind in known))
            raise RecipeError(
                f"{flag(axis)} {given.name}: needs {getattr(statistic, '__name__', statistic)!r}; "
                f"the statistics that it can need are {names}"
            )


def as_share(sparsity: Any) -> float:
    """The sparsity as a float. Raises RecipeError unless 0 ≤ sparsity < 1."""
    is_number = isinstance(sparsity, (int, float)) and not isinstance(sparsity, bool)
    if not is_number or not 0 <= sparsity < 1:
        raise RecipeError(
            f"--sparsity {sparsity!s:.60}: expected the removed share, 0 ≤ sparsity < 1, as in 0.5"
        )
    return float(sparsity)


def as_error(max_error: Any) -> float:
    """The largest relative error as a float. Raises RecipeError unless it is above 0."""
    is_number = isinstance(max_error, (int, float)) and not isinstance(max_error, bool)
    if not is_number or not 0 < max_error < _LARGEST_ERROR:
        raise RecipeError(
            f"--max-error {max_error!s:.60}: expected the largest relative error of the predicted "
            "noise, a number above 0, as in 0.005"
        )
    return float(max_error)


def as_globs(word: str, given: Any) -> tuple[str, ...]:
    """One glob or several as a tuple. Raises RecipeError for anything that is no text."""
    patterns = (given,) if isinstance(given, str) else () if given is None else given
    if not isinstance(patterns, Sequence) or not all(isinstance(p, str) for p in patterns):
        raise RecipeError(f"--{word} {given!r:.60}: expected globs such as '*.attn1.to_q'")
    return tuple(patterns)


def _mapping(axis: str, constants: Any) -> Mapping[str, Any]:
    if not isinstance(constants, Mapping):
        raise RecipeError(f"{flag(axis)}: constants {constants!r}; expected a mapping of numbers")
    return constants
