"""How is JSON read that others wrote? Every value is one that the rest can work with, or one line
says what is wrong."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from ditprune.errors import DitpruneError, ModelError

# What reading values raises where a file of ours is JSON, but not in the form that we write.
MALFORMED = (KeyError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError)

MOST_BYTES = 64 * 1024**2
_DEEPEST = 64  # levels; ours have six
_MOST_DIGITS = 20  # of an integer, as the largest of 64 bits has
_MOST_DIGITS_OF_OTHERS = 40  # transformers writes 1e30 for no limit
_HALF = re.compile(r"\\u[dD][89a-fA-F]")


def read_json(
    file: Path, most_bytes: int = MOST_BYTES, error_type: type[DitpruneError] = ModelError,
    as_python: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """A JSON object from a file of at most `most_bytes`.

    Args:
        as_python: take what diffusers and transformers write as well: ±Infinity, longer integers.

    Raises an error of `error_type` with the file's name: ModelError by default.
    """
    if file.exists() and not file.is_file():  # a pipe would be waited for, a device has no end
        raise error_type(f"{file}: is no regular file; expected a JSON object")
    try:
        with file.open("rb") as stream:
            size = os.fstat(stream.fileno()).st_size  # a read takes the memory that it is told
            raw = stream.read(min(size, most_bytes) + 1)
        if len(raw) > most_bytes:
            raise ValueError(f"it is larger than {most_bytes / 1024**2:.0f} MiB")
        content = parse_json(raw, as_python)
    except (OSError, ValueError) as error:
        raise error_type(
            f"{file}: cannot be read as JSON ({error}); expected a JSON object"
        ) from None
    if not isinstance(content, dict):
        raise error_type(f"{file}: holds {type(content).__name__}, expected a JSON object")
    return content


def parse_json(text: str | bytes, as_python: bool = False) -> Any:
    """The value of JSON text, if each part of it can be written again.

    Args:
        as_python: as for `read_json`.

    Raises ValueError for text that is no JSON, NaN and Inf, integers beyond 64 bits, floats beyond
    float64, halves of characters and deep nesting.
    """
    if isinstance(text, (bytes, bytearray)):
        text = text.decode("utf-8")
    try:
        content = json.loads(
            text,
            parse_constant=partial(_constant, as_python=as_python),
            parse_int=partial(_integer, as_python=as_python),
            parse_float=_number,
        )
    except RecursionError:
        raise _too_deep() from None
    _check_depth(content)
    if _HALF.search(text):
        _check_characters(content)
    return content


def storable(what: str, value: Any, error_type: type[DitpruneError]) -> dict[str, Any]:
    """A mapping as JSON gives it back. Raises an error of `error_type` for what it cannot hold."""
    try:
        if not isinstance(value, Mapping):
            raise TypeError(f"it is {type(value).__name__}")
        return dict(parse_json(json.dumps(dict(value))))
    except MALFORMED as error:
        raise error_type(
            f"{what}: cannot be stored ({error}); expected a dict of texts, numbers and lists"
        ) from None


def _constant(name: str, as_python: bool) -> float:
    if as_python and name != "NaN":
        return float(name)
    raise ValueError(f"{name} is no number of JSON")


def _integer(digits: str, as_python: bool) -> int:
    most = _MOST_DIGITS_OF_OTHERS if as_python else _MOST_DIGITS
    if len(digits) > most:
        raise ValueError(f"an integer has {len(digits)} digits, expected at most {most}")
    return int(digits)


def _number(digits: str) -> float:
    value = float(digits)
    if value in (float("inf"), -float("inf")):
        raise ValueError(f"{digits[:20]} is too large for a number of 64 bits")
    return value


def _too_deep() -> ValueError:
    return ValueError(f"its values are nested more than {_DEEPEST} deep")


def _check_depth(content: Any) -> None:
    level = [content]
    for _ in range(_DEEPEST + 1):
        level = [part for value in level for part in _parts(value)]
        if not level:
            return
    raise _too_deep()


def _parts(value: Any) -> Iterable[Any]:
    """The lists and objects within a list or an object."""
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return (part for part in parts if isinstance(part, (dict, list)))


def _check_characters(content: Any) -> None:
    """Refuse halves of characters, which no file can hold.

    U+DC80 to U+DCFF stand for bytes of a file's name that is not UTF-8, which we write ourselves.
    """
    try:
        json.dumps(content, ensure_ascii=False).encode("utf-8", "surrogateescape")
    except UnicodeEncodeError as error:
        half = ascii(error.object[error.start])[1:-1]
        raise ValueError(f"it holds {half}, the half of a character") from None
