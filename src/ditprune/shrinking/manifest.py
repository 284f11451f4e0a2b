"""What does ditprune.json say of a shrunk denoiser? What went, by layer, and what it was before."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from ditprune.checkpoints.shrunk.form import Form, marked_form, shrunk_form
from ditprune.checkpoints.shrunk.record import FREE, KIND, form_after
from ditprune.checkpoints.shrunk.resize import number_of
from ditprune.checkpoints.skeleton import num_parameters
from ditprune.checkpoints.weights import Weights
from ditprune.shrinking.prices import Size
from ditprune.shrinking.units import Cut, UnitGroup, Whole
from ditprune.writing.replaceable import BESIDE


def size_of(folder: Path, weights: Weights, num_macs: int) -> Size:
    """The size of a denoiser's folder."""
    num_bytes = sum(entry.size_bytes for entry in weights.entries.values())
    return Size(num_macs, num_parameters(folder, weights), num_bytes)


@dataclass(frozen=True)
class Lowered:
    """A layer that became two.

    Args:
        error: of its output, relative to that output's energy; None if it was not measured.
    """

    rank: int
    error: float | None = None


@dataclass(frozen=True)
class Went:
    """What went from a denoiser; all names are those of the denoiser before.

    Args:
        errors: by group, the relative error that its choice expects.
        whole: what could have gone and stays, and why.
        blocks: by list, which of its blocks stay; a list that is not named stays whole.
        ranks: by layer.
        blocks_in_config: whether the config of what is left says which blocks stay, as
            `config_without` finds it; else the form does.
    """

    cut: Cut
    errors: Mapping[str, float]
    whole: Sequence[Whole] = ()
    blocks: Mapping[str, Sequence[int]] = field(default_factory=dict)
    ranks: Mapping[str, Lowered] = field(default_factory=dict)
    blocks_in_config: bool = False

    def form(self, denoiser: nn.Module) -> Form:
        """The form of a denoiser from which this goes, as it will be.

        Args:
            denoiser: before, on the meta device or with values.
        """
        numbers: dict[str, dict[str, int]] = {}
        for (path, name), less in self.cut.numbers().items():
            value = number_of(denoiser.get_submodule(path), name) or 0
            numbers.setdefault(path, {})[name] = value - less
        ranks = {layer: lowered.rank for layer, lowered in self.ranks.items()}
        went = Form(numbers, self.blocks, ranks)
        return form_after(shrunk_form(denoiser), went, self.blocks_in_config)


def base_before(
    base: Mapping[str, Any], denoiser: nn.Module, shapes: Mapping[str, Sequence[int]], went: Went
) -> dict[str, Any]:
    """What identifies a denoiser before it is shrunk, with its shapes, numbers and form.

    Args:
        base: from `base_of`.
        denoiser: before, on the meta device or with values.
        shapes: of its tensors as they are stored.
    """
    numbers: dict[str, dict[str, int | None]] = {}
    for group in went.cut.groups.values():
        for number in group.numbers:
            value = number_of(denoiser.get_submodule(number.module), number.name)
            numbers.setdefault(number.module, {})[number.name] = value
    form = marked_form(denoiser)
    return {
        **base,
        "form": None if form is None else form.to_dict(),
        "numbers": numbers,
        "shapes": {name: list(shape) for name, shape in shapes.items()},
    }


def shrunk_claims(
    went: Went, recipe: Mapping[str, Any], base: Mapping[str, Any], before: Size, after: Size,
    hashes: Mapping[str, str], headers: Mapping[str, str], beside: Mapping[str, str],
    layout: str = FREE, **more: Any,
) -> dict[str, Any]:  # fmt: skip
    """The manifest of a shrunk denoiser, as plain values.

    Args:
        recipe: as JSON.
        base: from `base_before`.
        hashes: the sha256 of every tensor that was written.
        headers: that of the header of every shard that was written.
        beside: that of every file that is no denoiser's, by its path from the denoiser's folder.
        layout: `free`, or `stock` for a folder whose config.json says all, without a form.
        more: other facts, as JSON.
    """
    cut = went.cut
    return {
        "kind": KIND,
        "layout": layout,
        "recipe": dict(recipe),
        "base": dict(base),
        "totals": {"before": asdict(before), "after": asdict(after)},
        "groups": {
            name: _group(group, cut.kept.get(name, range(group.num_units)), went.errors.get(name))
            for name, group in cut.groups.items()
        },
        "whole": [asdict(whole) for whole in went.whole],
        "blocks": {path: list(stay) for path, stay in went.blocks.items()},
        "blocks_in_config": went.blocks_in_config,
        "ranks": {layer: asdict(lowered) for layer, lowered in went.ranks.items()},
        **more,
        "headers_sha256": dict(headers),
        "tensors": dict(hashes),
        BESIDE: dict(beside),
    }


def _group(group: UnitGroup, stay: Sequence[int], error: float | None) -> dict[str, Any]:
    """A group's record."""
    numbers: dict[str, dict[str, int]] = {}
    for number in group.numbers:
        values = numbers.setdefault(number.module, {})
        values[number.name] = values.get(number.name, 0) + number.per_unit
    return {
        "kind": group.kind,
        "block": group.block,
        "num_units": group.num_units,
        "kept": list(stay),
        "error": error,
        "parts": recorded_parts(group),
        "numbers": numbers,
    }


def recorded_parts(group: UnitGroup) -> dict[str, dict[str, list[list[int]]]]:
    """By tensor and dimension, the runs of places that a unit has there."""
    parts: dict[str, dict[str, list[list[int]]]] = {}
    for part in group.parts:
        parts.setdefault(part.tensor, {}).setdefault(str(part.dim), []).extend(part.runs())
    return parts
