"""Reads `results.json`, and refuses one that the page could not tell the truth from."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ditprune.errors import ResultsError

FILE = "results.json"
FORMAT = 2
DENSE = "dense"
_IMAGE = re.compile(r"data:image/(?:png|webp|jpeg);base64,[A-Za-z0-9+/]+={0,2}")

_Check = Callable[[Any, str], None]


def load(place: Path) -> dict[str, Any]:
    """The results in a folder, or in the file itself, checked. Raises ResultsError."""
    file = place / FILE if place.is_dir() else place
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
    """The same content, once it is known to be results of this format.

    Raises ResultsError that names `source` and the place in it.
    """
    try:
        _mapping(content, "the file")
        if content.get("format") != FORMAT:
            raise _WrongError("format", content.get("format"), f"{FORMAT}")
        _RESULTS(content, "")
        _check_names(content)
    except _WrongError as wrong:
        raise ResultsError(f"{source}: {wrong}; run `ditprune evaluate` again") from None
    return dict(content)


class _WrongError(ValueError):
    """What stands at a place of the file is not what is expected there."""

    def __init__(self, where: str, given: Any, expected: str) -> None:
        shown = repr(given)
        shown = shown if len(shown) <= 60 else f"{shown[:59]}…"
        super().__init__(f"{where} is {shown}, expected {expected}")


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no number of JSON")


def _mapping(value: Any, where: str) -> None:
    if not isinstance(value, Mapping):
        raise _WrongError(where, value, "an object")


def _number(value: Any, where: str) -> None:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or not math.isfinite(value):
        raise _WrongError(where, value, "a number")


def _text(value: Any, where: str) -> None:
    if not isinstance(value, str):
        raise _WrongError(where, value, "text")


def _anything(value: Any, where: str) -> None:
    pass


def _image(value: Any, where: str) -> None:
    if not isinstance(value, str) or not _IMAGE.fullmatch(value):
        raise _WrongError(where, value, "a data:image/…;base64 of PNG, WebP or JPEG")


def _one_of(*words: str) -> _Check:
    def check(value: Any, where: str) -> None:
        if value not in words:
            raise _WrongError(where, value, " or ".join(words))

    return check


def _maybe(inner: _Check) -> _Check:
    def check(value: Any, where: str) -> None:
        if value is not None:
            inner(value, where)

    return check


def _list(inner: _Check) -> _Check:
    def check(value: Any, where: str) -> None:
        if not isinstance(value, list):
            raise _WrongError(where, value, "a list")
        for number, one in enumerate(value):
            inner(one, f"{where}[{number}]")

    return check


def _each(inner: _Check) -> _Check:
    def check(value: Any, where: str) -> None:
        _mapping(value, where)
        for key, one in value.items():
            inner(one, f"{where}.{key}")

    return check


def _object(_optional: frozenset[str] = frozenset(), /, **keys: _Check) -> _Check:
    def check(value: Any, where: str) -> None:
        _mapping(value, where)
        for key, inner in keys.items():
            place = f"{where}.{key}".lstrip(".")
            if key in value:
                inner(value[key], place)
            elif key not in _optional:
                raise _WrongError(place, None, "to be there")

    return check


_ESTIMATE = _object(value=_number, low=_maybe(_number), high=_maybe(_number))
_METRIC = _object(
    title=_text, better=_one_of("lower", "higher", "none"), unit=_text, digits=_number,
    against=_one_of("dense", "real", "condition", "none"), unavailable=_maybe(_text),
    note=_maybe(_text),
)  # fmt: skip
_ACCOUNTING = _object(**{
    key: _maybe(_number)
    for key in (
        "num_parameters", "num_nonzero", "size_bytes", "macs_per_step", "macs_per_step_effective",
        "macs_per_image", "macs_per_image_effective", "seconds_per_image",
    )
})  # fmt: skip
_TARGET = _object(
    name=_text, role=_text, depth=_number, shape=_list(_number), sparsity=_number,
    g_out=_maybe(_number), granularity=_maybe(_text),
)  # fmt: skip
_MODEL = _object(
    frozenset({"calibrate_command", "num_spoiled"}),
    name=_text,
    sparsity_asked=_anything,
    sparsity=_number,
    recipe=_maybe(_mapping),
    calibrate_command=_maybe(_text),
    command=_maybe(_text),
    metrics=_each(_maybe(_ESTIMATE)),
    warnings=_list(_text),
    num_spoiled=_number,
    error_by_timestep=_list(
        _object(timestep=_maybe(_number), place=_number, error=_maybe(_number), num_rows=_number)
    ),
    accounting=_ACCOUNTING,
    targets=_list(_TARGET),
)
_SAMPLE = _object(
    index=_number, condition=_anything, seed=_anything, images=_each(_image),
    ssim=_each(_maybe(_number)),
)  # fmt: skip
_TIMES: dict[str, _Check] = {
    **{f"{path}_ms": _maybe(_number)
       for path in ("dense_fp32", "dense_bf16", "sparse_fp32", "sparse_bf16")},
    "pays": _anything,
}  # fmt: skip
_BENCH = _object(
    model=_text, device=_text, num_threads=_number, instruction_set=_text,
    layers=_list(_object(
        layer=_text, num_layers=_number, shape=_list(_number), num_tokens=_number,
        sparsity=_number, **_TIMES,
    )),
    layers_together=_object(**_TIMES),
    steps=_each(_object(frozenset({*_TIMES, "reason"}), reason=_text, **_TIMES)),
    notes=_list(_text),
)  # fmt: skip
_RESULTS = _object(
    frozenset({"bench"}),
    command=_text, protocol=_mapping, metrics=_each(_METRIC), models=_list(_MODEL),
    gallery=_list(_SAMPLE), bench=_maybe(_BENCH),
)  # fmt: skip


def _check_names(content: Mapping[str, Any]) -> None:
    names = [model["name"] for model in content["models"]]
    if len(names) < 2 or names[0] != DENSE:
        raise _WrongError("models", names, f"{DENSE!r} first, then a pruned model or several")
    if len(set(names)) < len(names):
        raise _WrongError("models", names, "names that differ")
    for number, sample in enumerate(content["gallery"]):
        if DENSE not in sample["images"]:
            raise _WrongError(
                f"gallery[{number}].images", list(sample["images"]), f"one of {DENSE!r}"
            )
