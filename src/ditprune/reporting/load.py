"""Is this a results.json that the page can be made from?"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ditprune.errors import ResultsError
from ditprune.writing.json_file import read_json

FILE = "results.json"
DENSE = "dense"
_MOST_BYTES = 512 * 1024**2  # with the images of many samples

SCHEMA = Path(__file__).parent / "results.schema.json"
_TYPES = {
    "integer": "a whole number",
    "number": "a number",
    "string": "text",
    "array": "a list",
    "object": "an object",
}


def load(path: Path) -> dict[str, Any]:
    """The checked results in a folder, or in the file itself. Raises ResultsError."""
    file = path / FILE if path.is_dir() else path
    if not file.is_file():
        raise ResultsError(
            f"{file}: no such file; expected the folder that `ditprune evaluate -o` wrote"
        )
    try:
        content = read_json(file, _MOST_BYTES, ResultsError)
    except ResultsError as error:
        raise ResultsError(f"{error}; run `ditprune evaluate` again") from None
    return check(content, str(file))


def check(content: Any, source: str) -> dict[str, Any]:
    """The same content, if it matches the schema and names each model once, the dense one first.

    Raises ResultsError that names `source` and the position in it.
    """
    wrong = _schema_error(content) or _names_error(content)
    if wrong is not None:
        where, given, expected = wrong
        shown = repr(given)
        shown = shown if len(shown) <= 60 else f"{shown[:59]}…"
        raise ResultsError(
            f"{source}: {where} is {shown}, expected {expected}; run `ditprune evaluate` again"
        )
    return dict(content)


def _schema_error(content: Any) -> tuple[str, Any, str] | None:
    """Where the content breaks the schema, what stands there and what is expected."""
    from jsonschema import Draft202012Validator
    from jsonschema.validators import extend

    if isinstance(content, dict) and "format" not in content:  # told before what it lacks besides
        return "format", None, "2"
    schema = json.loads(SCHEMA.read_text(encoding="utf-8"))
    types = Draft202012Validator.TYPE_CHECKER.redefine("number", lambda _, value: _is_number(value))
    validator = extend(Draft202012Validator, type_checker=types)(schema)
    error = next(validator.iter_errors(content), None)
    if error is None:
        return None
    where = error.json_path.removeprefix("$").lstrip(".")  # `models[1].sparsity`
    if error.validator == "required":
        missing = next(key for key in error.validator_value if key not in error.instance)
        return f"{where}.{missing}".lstrip("."), None, "to be there"
    value = error.validator_value
    if error.validator == "type":
        expected = _TYPES[value if isinstance(value, str) else value[0]]
    elif error.validator == "enum":
        expected = " or ".join(value)
    else:
        expected = error.schema.get("description", f"{value}")
    return where or "the file", error.instance, expected


def _is_number(value: Any) -> bool:
    """Whether it is a number that float can hold; NaN and Inf are none."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return is_number and abs(value) <= sys.float_info.max


def _names_error(content: Mapping[str, Any]) -> tuple[str, Any, str] | None:
    """What the schema cannot say: which models there are, and that dense is in each sample."""
    names = [model["name"] for model in content["models"]]
    if len(names) < 2 or names[0] != DENSE:
        return "models", names, f"{DENSE!r} first, then a pruned model or several"
    if len(set(names)) < len(names):
        return "models", names, "names that differ"
    for number, sample in enumerate(content["gallery"]):
        if DENSE not in sample["images"]:
            return f"gallery[{number}].images", list(sample["images"]), f"one of {DENSE!r}"
    return None
