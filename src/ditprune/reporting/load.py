"""Is this a results.json that the page can be made from?"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ditprune.errors import ResultsError

FILE = "results.json"
FORMAT = 2
DENSE = "dense"

_Schema = dict[str, Any]
_NUMBER: _Schema = {"type": "number"}
_TEXT: _Schema = {"type": "string"}
_OBJECT: _Schema = {"type": "object"}
_MAYBE_NUMBER: _Schema = {"type": ["number", "null"]}
_MAYBE_TEXT: _Schema = {"type": ["string", "null"]}
_IMAGE: _Schema = {
    **_TEXT,
    "pattern": r"\Adata:image/(?:png|webp|jpeg);base64,[A-Za-z0-9+/]+={0,2}\Z",
}


def _list(items: _Schema) -> _Schema:
    return {"type": "array", "items": items}


def _each(values: _Schema) -> _Schema:
    """An object with any keys."""
    return {"type": "object", "additionalProperties": values}


def _keys(optional: Mapping[str, _Schema] | None = None, /, **required: _Schema) -> _Schema:
    """An object with these keys; more keys do no harm."""
    properties = {**required, **(optional or {})}
    return {"type": "object", "properties": properties, "required": list(required)}


def _or_null(schema: _Schema) -> _Schema:
    return {**schema, "type": [schema["type"], "null"]}


_METRIC = _keys(
    title=_TEXT, better={"enum": ["lower", "higher", "none"]}, unit=_TEXT, digits=_NUMBER,
    against={"enum": ["dense", "real", "condition", "none"]}, unavailable=_MAYBE_TEXT,
    note=_MAYBE_TEXT,
)  # fmt: skip
_ACCOUNTING = _keys(
    num_parameters=_MAYBE_NUMBER, num_nonzero=_MAYBE_NUMBER, size_bytes=_MAYBE_NUMBER,
    macs_per_step=_MAYBE_NUMBER, macs_per_step_effective=_MAYBE_NUMBER,
    macs_per_image=_MAYBE_NUMBER, macs_per_image_effective=_MAYBE_NUMBER,
    seconds_per_image=_MAYBE_NUMBER,
)  # fmt: skip
_TARGET = _keys(
    name=_TEXT, role=_TEXT, depth=_NUMBER, shape=_list(_NUMBER), sparsity=_NUMBER,
    g_out=_MAYBE_NUMBER, granularity=_MAYBE_TEXT,
)  # fmt: skip
_MODEL = _keys(
    {"calibrate_command": _MAYBE_TEXT, "num_spoiled": _NUMBER},
    name=_TEXT,
    sparsity_asked={},
    sparsity=_NUMBER,
    recipe=_or_null(_OBJECT),
    command=_MAYBE_TEXT,
    metrics=_each(_or_null(_keys(value=_NUMBER, low=_MAYBE_NUMBER, high=_MAYBE_NUMBER))),
    warnings=_list(_TEXT),
    error_by_timestep=_list(
        _keys(timestep=_MAYBE_NUMBER, place=_NUMBER, error=_MAYBE_NUMBER, num_rows=_NUMBER)
    ),
    accounting=_ACCOUNTING,
    targets=_list(_TARGET),
)
_SAMPLE = _keys(
    index=_NUMBER, condition={}, seed={}, images=_each(_IMAGE), ssim=_each(_MAYBE_NUMBER)
)
_TIMES: dict[str, _Schema] = {
    "dense_fp32_ms": _MAYBE_NUMBER, "dense_bf16_ms": _MAYBE_NUMBER, "sparse_fp32_ms": _MAYBE_NUMBER,
    "sparse_bf16_ms": _MAYBE_NUMBER, "pays": {},
}  # fmt: skip
_TIMED_LAYER = _keys(
    layer=_TEXT, num_layers=_NUMBER, shape=_list(_NUMBER), num_tokens=_NUMBER, sparsity=_NUMBER,
    **_TIMES,
)  # fmt: skip
_BENCH = _keys(
    model=_TEXT, device=_TEXT, num_threads=_NUMBER, instruction_set=_TEXT,
    layers=_list(_TIMED_LAYER), layers_together=_keys(**_TIMES),
    steps=_each(_keys({"reason": _TEXT, **_TIMES})), notes=_list(_TEXT),
)  # fmt: skip
SCHEMA = _keys(
    {"bench": _or_null(_BENCH)},
    format={"const": FORMAT}, command=_TEXT, protocol=_OBJECT, metrics=_each(_METRIC),
    models=_list(_MODEL), gallery=_list(_SAMPLE),
)  # fmt: skip
_TYPES = {"number": "a number", "string": "text", "array": "a list", "object": "an object"}


def load(path: Path) -> dict[str, Any]:
    """The checked results in a folder, or in the file itself. Raises ResultsError."""
    file = path / FILE if path.is_dir() else path
    if not file.is_file():
        raise ResultsError(
            f"{file}: no such file; expected the folder that `ditprune evaluate -o` wrote"
        )
    try:
        content = json.loads(file.read_text(encoding="utf-8"), parse_constant=_refuse_constant)
    except (OSError, ValueError, RecursionError) as error:
        raise ResultsError(
            f"{file}: cannot be read as JSON ({error}); run `ditprune evaluate` again"
        ) from None
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


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no number of JSON")


def _schema_error(content: Any) -> tuple[str, Any, str] | None:
    """Where the content breaks the schema, what stands there and what is expected."""
    from jsonschema import Draft202012Validator
    from jsonschema.validators import extend

    types = Draft202012Validator.TYPE_CHECKER.redefine("number", lambda _, value: _is_number(value))
    validator = extend(Draft202012Validator, type_checker=types)(SCHEMA)
    error = next(validator.iter_errors(content), None)
    if error is None:
        return None
    where = _path(error.absolute_path)
    if error.validator == "required":
        missing = next(key for key in error.validator_value if key not in error.instance)
        return f"{where}.{missing}".lstrip("."), None, "to be there"
    value = error.validator_value
    expected = {
        "type": lambda: _TYPES[value if isinstance(value, str) else value[0]],
        "enum": lambda: " or ".join(value),
        "const": lambda: str(value),
        "pattern": lambda: "a data:image/…;base64 of PNG, WebP or JPEG",
    }[error.validator]()
    return where or "the file", error.instance, expected


def _is_number(value: Any) -> bool:
    """Whether it is a number that float can hold; NaN and Inf are none."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return is_number and abs(value) <= sys.float_info.max


def _path(keys: Iterable[str | int]) -> str:
    """`models[1].sparsity`."""
    parts = (f"[{key}]" if isinstance(key, int) else f".{key}" for key in keys)
    return "".join(parts).lstrip(".")


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
