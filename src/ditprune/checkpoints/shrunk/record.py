"""What does the manifest of a shrunk folder say, and which tensors and which form follow from it?

Layers are named as in the model that was shrunk. The record of a group says where its units lie:
along which dimensions of which tensors, and in which runs. In a run `[start, length, step]` unit u
has `length` places from `start` + u × `step` on. So the shape of every tensor follows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from ditprune.checkpoints.shrunk.form import Form, new_name, renamed
from ditprune.writing.files import MANIFEST

KIND = "shrunk"  # the value of `kind` in a manifest; those of pruned folders have none

FREE, STOCK = "free", "stock"  # the values of `layout`
_OF_SHRINKING = (
    "kind", "layout", "recipe", "base", "totals", "groups", "whole", "blocks", "blocks_in_config",
    "ranks",
)  # fmt: skip

Shapes = dict[str, tuple[int, ...]]


def is_record(content: Mapping[str, Any]) -> bool:
    """Whether a manifest is that of a shrunk folder."""
    return content.get("kind") == KIND


def before_pruning(content: Mapping[str, Any]) -> dict[str, Any] | None:
    """What a pruned copy's manifest says of how its base was shrunk; None if it was not."""
    base = content.get("base")
    record = base.get(KIND) if isinstance(base, Mapping) else None
    return dict(record) if isinstance(record, Mapping) else None


def kept_when_pruned(content: Mapping[str, Any]) -> dict[str, Any]:
    """What a pruned copy's manifest says of its base: how that was shrunk, if it was.

    The hashes of its tensors and of the files beside them stay behind.
    """
    record = before_pruning(content)
    if is_record(content):
        record = {key: value for key, value in content.items() if key in _OF_SHRINKING}
    return {} if record is None else {KIND: record}


def stored_form(content: Mapping[str, Any] | None) -> Form:
    """A form in a manifest; an empty one for None. Raises ModelError."""
    return Form() if content is None else Form.from_config(content, MANIFEST)


def implied_shapes(claims: Mapping[str, Any]) -> Shapes:
    """The shape of every tensor that follows from a manifest.

    Raises one of `MALFORMED` where it cannot be read.
    """
    shapes: Shapes = {name: tuple(shape) for name, shape in claims["base"]["shapes"].items()}
    for group in claims["groups"].values():
        _take_units(shapes, group)
    for layer, record in claims["ranks"].items():
        _lower_rank(shapes, layer, _count(record["rank"]))
    return renamed(shapes, Form(blocks=claims["blocks"]))


def implied_form(claims: Mapping[str, Any]) -> Form:
    """The form of the denoiser that follows from a manifest; empty for a stock folder.

    Raises one of `MALFORMED`, or ModelError, where it cannot be read.
    """
    if claims["layout"] == STOCK:
        return Form()
    before: Mapping[str, Mapping[str, int]] = claims["base"]["numbers"]
    numbers: dict[str, dict[str, int]] = {}
    for group in claims["groups"].values():
        num_removed = group["num_units"] - len(group["kept"])
        for path, values in group["numbers"].items() if num_removed else ():
            here = numbers.setdefault(path, {})
            for name, per_unit in values.items():
                here[name] = here.get(name, before[path][name]) - per_unit * num_removed
    blocks = {path: tuple(stay) for path, stay in claims["blocks"].items()}
    ranks = {layer: record["rank"] for layer, record in claims["ranks"].items()}
    return form_after(
        stored_form(claims["base"]["form"]), Form(numbers, blocks, ranks),
        in_config=claims["blocks_in_config"] is True,
    )  # fmt: skip


def form_after(form: Form, went: Form, in_config: bool) -> Form:
    """The form of a denoiser of a form, once more has gone.

    Args:
        went: numbers, blocks and ranks, by the names from before blocks went.
        in_config: whether the config says which blocks stay, and not the form.
    """
    gone = Form(blocks=went.blocks)
    here = Form(renamed(went.numbers, gone), went.blocks, renamed(went.ranks, gone))
    if in_config:
        return form.without(went.blocks).then(replace(here, blocks={}))
    return form.then(here)


def false_groups(claims: Mapping[str, Any]) -> Iterator[str]:
    """One line for each group whose units are not those of a group."""
    for name, group in claims["groups"].items():
        stay, num_units = list(group["kept"]), group["num_units"]
        if not stay or stay != sorted(set(stay)) or not 0 <= stay[0] <= stay[-1] < num_units:
            yield f"{name}: keeps {len(stay)} units that are not ascending ones of {num_units}"
        if new_name(name, claims["blocks"]) is None and len(stay) < num_units:
            yield f"{name}: loses units, and its block goes"


def _take_units(shapes: Shapes, group: Mapping[str, Any]) -> None:
    num_removed = _count(group["num_units"]) - len(group["kept"])
    for name, dims in group["parts"].items():
        shape = list(shapes[name])
        for dim, runs in dims.items():
            shape[int(dim)] -= sum(_count(length) for _, length, _ in runs) * num_removed
        shapes[name] = tuple(shape)


def _lower_rank(shapes: Shapes, layer: str, rank: int) -> None:
    """Two tensors in the place of a weight, or smaller ones where there are two already."""
    down, up, bias = (f"{layer}.{name}" for name in ("down.weight", "up.weight", "up.bias"))
    if down in shapes:
        (_, num_in), (num_out, _) = shapes[down], shapes[up]
    else:
        num_out, num_in = shapes.pop(f"{layer}.weight")
        shapes.pop(f"{layer}.bias", None)
    shapes |= {down: (rank, num_in), up: (num_out, rank), bias: (num_out,)}


def _count(value: Any) -> int:
    """Raises ValueError for what is no whole number above zero."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{value!r:.40} is no whole number")
    return value
