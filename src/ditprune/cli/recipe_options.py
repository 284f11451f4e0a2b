"""Which options are the words of a recipe, and how does their text become values?

The options are made from the fields of `Recipe`, so a new word is an option as well. A value may be
given for each denoiser, as in `--sparsity transformer=0.5 --sparsity transformer_2=0.7`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import Any

import click

from ditprune.cli.globs import read_globs
from ditprune.cli.groups import grouped
from ditprune.errors import RecipeError
from ditprune.method.choices import AXES, PRESETS, constant_words, flag
from ditprune.method.distill import TAILS
from ditprune.method.recipe import DEFAULT_METHODS, GLOBS, NAMES, Recipe
from ditprune.method.words import build, from_json
from ditprune.writing.json_file import parse_json, read_json
from ditprune.writing.paths import path_of

_BY_DENOISER = re.compile(r"([A-Za-z_]\w*)=(.*)", re.DOTALL)
# The constants that are names, with what they may be.
_TEXTS = {"tail": f"; {', '.join(TAILS)}: steps of all layers together after the blocks"}
_NAMED = {*_TEXTS, "inputs"}
_TYPES = {part.name: part.metadata.get("kind", str) for part in fields(Recipe)}


def recipe_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Every word of a recipe, and a file with them; `read_recipe` takes them."""
    options = [_option(part.name, part.metadata) for part in fields(Recipe)]
    options += [
        click.option(flag(word), metavar="NAME" if word in _TEXTS else "NUMBER", multiple=True,
                     help=f"constant of a {axis}: {', '.join(_methods_with(axis, word))}"
                     f"{_TEXTS.get(word, '')}")
        for word, axis in constant_words().items()
    ]  # fmt: skip
    options += [
        click.option("--pattern", metavar="N:M", multiple=True,
                     help="keep N of every M weights, as in 2:4"),
        click.option("--preset", metavar="NAME", multiple=True,
                     help=f"[default: paper] {', '.join(PRESETS)}"),
        click.option("--recipe", metavar="FILE.json", multiple=True,
                     help="a recipe, as in ditprune.json; other options override it"),
    ]  # fmt: skip
    for option in reversed(options):
        command = option(command)
    return grouped(command, "Method", [*_TYPES, *constant_words(), "pattern", "preset", "recipe"])


def _option(word: str, metadata: Mapping[str, Any]) -> Callable[..., Any]:
    if _TYPES[word] is bool:
        return click.option(flag(word), is_flag=True, default=None, help=metadata["help"])
    if word in AXES:
        text = f"[default: {DEFAULT_METHODS[word]}] {', '.join(AXES[word])}"
        return click.option(flag(word), metavar="NAME", multiple=True, help=text)
    if word in NAMES:
        text = f"[default: {NAMES[word][0]}] {', '.join(NAMES[word])}"
        return click.option(flag(word), metavar="NAME", multiple=True, help=text)
    metavar = metadata["metavar"] or "NUMBER"
    return click.option(flag(word), metavar=metavar, multiple=True, help=metadata["help"])


def _methods_with(axis: str, constant: str) -> list[str]:
    """The methods that a constant can be given to."""
    return [
        name
        for name, method in AXES[axis].items()
        if method is not None
        and any(part.name == constant and part.init for part in fields(method))
    ]


def read_recipe(recipe: Sequence[str] = (), **texts: Any) -> dict[str, Any]:
    """The words of a recipe, or `recipe=` where a file is given, as `ditprune.prune` takes them.

    Raises RecipeError.
    """
    words = {word: _value(word, given) for word, given in texts.items() if given not in (None, ())}
    if not recipe:
        _check(words)
        return words
    files = _by_denoiser("recipe", recipe, str)
    names = {name for value in (files, *words.values()) if isinstance(value, _ByDenoiser)
             for name in value}  # fmt: skip
    if not names:
        return {"recipe": _from_file(files, words)}
    return {
        "recipe": {
            name: _from_file(_of(files, name), {w: _of(value, name) for w, value in words.items()})
            for name in sorted(names)
        }
    }


class _ByDenoiser(dict[str, Any]):
    """Values by denoiser, as against the constants of a method."""


def _check(words: Mapping[str, Any]) -> None:
    """Refuse, before a model is looked for, what no denoiser can have."""
    names = {name for value in words.values() if isinstance(value, _ByDenoiser) for name in value}
    for name in names or {""}:
        build(**{word: _of(value, name) for word, value in words.items()})


def _of(value: Any, name: str) -> Any:
    return value.get(name) if isinstance(value, _ByDenoiser) else value


def _value(word: str, given: Any) -> Any:
    if isinstance(given, bool):
        return given
    if word in AXES:
        return _by_denoiser(word, given, _method)
    is_number = word in constant_words() and word not in _TEXTS
    kind = _TYPES.get(word, float if is_number else str)
    if word in GLOBS:
        globs = read_globs(word, given)
        return _ByDenoiser(globs) if isinstance(globs, Mapping) else globs
    return _by_denoiser(word, given, lambda text: _number(word, text, kind))


def _by_denoiser(word: str, texts: Sequence[str], read: Callable[[str], Any]) -> Any:
    """One value, or values by denoiser. Raises RecipeError for both, and for two of one kind."""
    values = _ByDenoiser()
    for text in texts:
        match = _BY_DENOISER.fullmatch(text)
        if match is None and len(texts) == 1:
            return read(text)
        if match is None or match[1] in values:
            raise RecipeError(
                f"{flag(word)} {text}: {len(texts)} values given; expected one, or one for each "
                f"denoiser as in {flag(word)} transformer=…"
            )
        values[match[1]] = read(match[2])
    return values


def _method(text: str) -> Any:
    """`"admm,num_steps=30"` → {"name": "admm", "num_steps": 30}; a name alone stays text."""
    name, *constants = text.split(",")
    if not constants:
        return name
    values: dict[str, Any] = {"name": name}
    for constant in constants:
        word, equals, value = constant.partition("=")
        if not equals:
            raise RecipeError(f"'{text}': expected NAME,constant=value, as in admm,num_steps=30")
        if word in values:
            raise RecipeError(f"'{text}': {word} is given twice; leave one out")
        try:
            values[word] = value if word in _NAMED else parse_json(value)
        except ValueError:
            raise RecipeError(f"'{text}': {word} is '{value}', expected a number") from None
    return values


def _number(word: str, text: str, kind: type) -> Any:
    try:
        return kind(text)
    except ValueError:
        raise RecipeError(
            f"{flag(word)} '{text}': expected {'a whole number' if kind is int else 'a number'}"
        ) from None


def _from_file(file: str | None, words: Mapping[str, Any]) -> Recipe:
    if file is None:
        return build(**words)
    path = path_of(file, RecipeError)
    if not path.is_file():
        raise RecipeError(f"--recipe {file}: no such file; expected a JSON recipe")
    content = read_json(path)
    return from_json(content.get("recipe", content), file, **words)
