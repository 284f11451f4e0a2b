"""Does a shrunk folder hold what its manifest says went, and nothing else?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ditprune.checkpoints.shrunk.form import marked_form, shrunk_form
from ditprune.checkpoints.shrunk.record import FREE, false_groups, implied_form, implied_shapes
from ditprune.checkpoints.skeleton import num_parameters, skeleton
from ditprune.checkpoints.weights import Weights, sha256
from ditprune.errors import ModelError
from ditprune.writing.files import MANIFEST_FORMAT


def false_shrunk(claims: Mapping[str, Any], folder: Path, weights: Weights) -> Iterator[str]:
    """One line for every false claim of a shrunk folder's manifest.

    The shapes of the tensors are those that follow from what went; the form in config.json is the
    one that follows, and the class makes the model of both; every tensor has the bytes that were
    written; the totals are the sums.

    Raises one of `MALFORMED`, or ModelError, for a manifest that cannot be read.
    """
    if claims["format"] != MANIFEST_FORMAT:
        yield f"format {claims['format']}, this version reads {MANIFEST_FORMAT}"
    yield from false_groups(claims)
    yield from _false_tensors(claims, weights)
    yield from _false_model(claims, folder, weights)
    yield from _false_totals(claims["totals"], folder, weights)


def _false_tensors(claims: Mapping[str, Any], weights: Weights) -> Iterator[str]:
    shapes, hashes = implied_shapes(claims), dict(claims["tensors"])
    if weights.header_hashes() != claims["headers_sha256"]:
        yield "the headers of the shards (names, dtypes, shapes) are not those that were written"
    for name in sorted((shapes.keys() | hashes.keys()) - weights.entries.keys()):
        yield f"{name}: missing from the weights"
    for entry in weights.in_order():
        if entry.name not in shapes or entry.name not in hashes:
            yield f"{entry.name}: is in the weights, and does not follow from what went"
        elif tuple(entry.shape) != shapes[entry.name]:
            yield (
                f"{entry.name}: shape {list(entry.shape)} on disk, {list(shapes[entry.name])} "
                "follows from what went"
            )
        elif _hash(weights, entry) != hashes[entry.name]:
            yield f"{entry.name}: its bytes are not those that were written"


def false_shapes(record: Mapping[str, Any], folder: Path, weights: Weights) -> Iterator[str]:
    """The same of a pruned copy, whose values are others: shapes and the form alone."""
    yield from false_groups(record)
    yield from _false_model(record, folder, weights)
    shapes = {entry.name: tuple(entry.shape) for entry in weights.in_order()}
    for name, shape in implied_shapes(record).items():
        if shapes.get(name) != shape:
            yield f"{name}: shape {shapes.get(name)} on disk, {shape} follows from what went"


def _hash(weights: Weights, entry: Any) -> str:
    try:
        return sha256(weights.raw(entry))
    except ModelError as error:
        return str(error)


def _false_model(claims: Mapping[str, Any], folder: Path, weights: Weights) -> Iterator[str]:
    """Of the model that config.json makes: its form, and the shapes of its parameters."""
    try:
        tree = skeleton(folder, takes_compact=True)
    except ModelError as error:
        yield str(error)
        return
    for name, parameter in tree.named_parameters():
        entry = weights.entries.get(name)
        if entry is not None and tuple(entry.shape) != tuple(parameter.shape):
            yield f"{name}: {list(entry.shape)} on disk, config.json makes {list(parameter.shape)}"
    form = shrunk_form(tree)
    if (marked_form(tree) is None) == (claims["layout"] == FREE):
        yield f"config.json: is not that of a folder of layout {claims['layout']}"
    expected = implied_form(claims)
    for what in ("blocks", "ranks", "numbers"):
        mine, theirs = (_plain(getattr(each, what)) for each in (form, expected))
        for path in sorted(mine.keys() | theirs.keys()):
            if mine.get(path) != theirs.get(path):
                yield (
                    f"config.json: {what} of {path} are {mine.get(path)}, {theirs.get(path)} "
                    "follow from what went"
                )


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """As JSON has it, to be compared."""
    return {
        path: dict(value) if isinstance(value, Mapping)
        else list(value) if isinstance(value, (list, tuple))
        else value
        for path, value in values.items()
    }  # fmt: skip


def _false_totals(totals: Mapping[str, Any], folder: Path, weights: Weights) -> Iterator[str]:
    before, after = totals["before"], totals["after"]
    actual = {
        "num_parameters": num_parameters(folder, weights),
        "num_bytes": sum(entry.size_bytes for entry in weights.entries.values()),
    }
    for key, value in actual.items():
        if after[key] != value:
            yield f"totals: {key} after is {after[key]}, the folder has {value}"
    for key, value in after.items():
        if value is not None and not 0 < value <= before[key]:
            yield f"totals: {key} is {value} after and {before[key]} before"
