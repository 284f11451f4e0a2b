"""What went from a shrunk denoiser, as its manifest says? So that as much goes from its relatives.

From a fine-tune of its base the same units go, and the same ranks. The manifest is not trusted:
what it says must follow from itself, and must fit the fine-tune or the LoRA that is cut.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ditprune.checkpoints.locate import ModelFolder, locate
from ditprune.checkpoints.shrunk.form import Form
from ditprune.checkpoints.shrunk.record import (
    FREE,
    Shapes,
    before_pruning,
    false_groups,
    implied_shapes,
    is_record,
)
from ditprune.checkpoints.skeleton import skeleton
from ditprune.checkpoints.weights import Weights
from ditprune.errors import ModelError, RecipeError
from ditprune.shrinking.chosen import CutChoice
from ditprune.shrinking.manifest import recorded_parts
from ditprune.shrinking.modulation import NONE, modulation_layers
from ditprune.shrinking.recipe import ShrinkRecipe
from ditprune.shrinking.survey import block_paths
from ditprune.shrinking.units import HEADS, NEURONS, Cut, UnitGroup, UnitPart, places_of
from ditprune.writing.files import MANIFEST, read_manifest
from ditprune.writing.json_file import MALFORMED

_NOTE = "what went from a relative went (--like); the errors are those expected there"
_MOST_PLACES = 2**24  # along one dimension; far above any model


@dataclass(frozen=True, eq=False)
class Like:
    """What went from a denoiser; all names are those of its base.

    Args:
        where: the manifest.
        record: what it says.
        cut: of the groups that lost units; these have no consumers and no numbers.
        shapes: of the tensors of the base.
        blocks: by list, which of its blocks stay.
        ranks: by layer.
    """

    where: str
    record: Mapping[str, Any]
    cut: Cut
    shapes: Shapes
    blocks: Mapping[str, Sequence[int]]
    ranks: Mapping[str, int]

    def recipe(self) -> ShrinkRecipe:
        """The recipe that it was shrunk by. Raises ModelError where a fine-tune cannot follow."""
        if self.record["layout"] != FREE or any(self.blocks):
            raise ModelError(
                f"{self.where}: whole blocks went, or its layout is stock; expected units and ranks"
                " alone; shrink the fine-tune by itself, with the same words and without --like"
            )
        try:
            return ShrinkRecipe.of(**self.record["recipe"])
        except (RecipeError, *MALFORMED) as error:
            raise ModelError(f"{self.where}: its recipe cannot be read ({error})") from None

    def check_shapes(self, weights: Weights, name: str) -> None:
        """Raise ModelError where layers that could lose something are others than in the base."""
        layers = (f"{layer}.weight" for layer in self.ranks)
        parts = (tensor for group in self.record["groups"].values() for tensor in group["parts"])
        for tensor in dict.fromkeys((*parts, *(name for name in layers if name in self.shapes))):
            entry = weights.entries.get(tensor)
            if entry is None or tuple(entry.shape) != self.shapes[tensor]:
                told = "missing" if entry is None else list(entry.shape)
                raise ModelError(
                    f"{name}: {tensor} is {told}, {list(self.shapes[tensor])} in the base of "
                    f"{self.where}; expected a fine-tune of the same base"
                )

    def check_ranks(self, layers: Sequence[str]) -> None:
        """Raise ModelError where ranks are not those of these modulation layers."""
        for layer, rank in self.ranks.items():
            shape = self.shapes.get(f"{layer}.weight") or self.shapes.get(f"{layer}.up.weight")
            if layer not in layers or shape is None or rank > min(shape):
                raise ModelError(
                    f"{layer}: has rank {rank} in {self.where}, and is no modulation layer here "
                    "that can have it; expected a fine-tune of the same base"
                )

    def chosen(self, groups: Mapping[str, UnitGroup]) -> CutChoice:
        """The same units and ranks of a fine-tune.

        Args:
            groups: of the fine-tune, tried on a call.

        Raises ModelError where the attentions and MLPs are others.
        """
        for name, group in self.record["groups"].items():
            if name not in groups:
                raise ModelError(
                    f"{name}: is {group['kind']} in {self.where}, and cannot lose units here; "
                    "expected a fine-tune of the same base, and calls of it"
                )
            mine: dict[str, Any] = {
                "kind": groups[name].kind, "block": groups[name].block,
                "num_units": groups[name].num_units, "parts": recorded_parts(groups[name]),
            }  # fmt: skip
            for word, value in mine.items():
                if value != group[word]:
                    raise ModelError(
                        f"{name}: its {word} are {value!r:.80}, {group[word]!r:.80} in "
                        f"{self.where}; expected a fine-tune of the same base"
                    )
        stay = {name: list(group["kept"]) for name, group in self.record["groups"].items()}
        errors = {name: float(group["error"] or 0) for name, group in self.record["groups"].items()}
        return CutChoice(
            Cut({name: groups[name] for name in stay}, stay), self.ranks or NONE, errors,
            float(self.record.get("ratio", 0)), float(self.record.get("error", 0)), (_NOTE,),
        )  # fmt: skip


def read_like(folder: Path) -> Like:
    """What went from a denoiser of this folder. Raises ModelError for anything else."""
    content = read_manifest(folder)
    where = folder / MANIFEST
    try:
        record = content if is_record(content) else before_pruning(content)
        if record is None:
            raise ModelError(
                f"{where}: is not that of a shrunk folder; expected one that `ditprune shrink` "
                "wrote (--like)"
            )
        for line in false_groups(record):
            raise ValueError(line)
        shapes = {name: tuple(shape) for name, shape in record["base"]["shapes"].items()}
        implied_shapes(record)
        form = Form.from_config(
            {"format": 1, "blocks": record["blocks"],
             "ranks": {layer: r["rank"] for layer, r in record["ranks"].items()}}, str(where),
        )  # fmt: skip
        groups = {
            name: _group(name, group, shapes)
            for name, group in record["groups"].items()
            if len(group["kept"]) < group["num_units"]
        }
        _check_numbers(record)
        cut = Cut(groups, {name: list(record["groups"][name]["kept"]) for name in groups})
        return Like(str(where), record, cut, shapes, form.blocks, form.ranks)
    except MALFORMED as error:
        raise ModelError(
            f"{where}: cannot be read ({type(error).__name__}: {error!s:.120}); run "
            "`ditprune verify`, or shrink again"
        ) from None


def _check_numbers(record: Mapping[str, Any]) -> None:
    """Raises TypeError or ValueError where units or errors are no numbers."""
    for group in record["groups"].values():
        float(group["error"] or 0)
        if any(type(unit) is not int for unit in group["kept"]):
            raise ValueError("units that stay are no whole numbers")
    for word in ("ratio", "error"):
        float(record.get(word, 0))


def likes_for(model: ModelFolder, like: Path) -> dict[str, Like]:
    """What went from each denoiser of a model's relative. Raises ModelError."""
    others = locate(str(like)).denoisers
    if len(others) == len(model.denoisers) == 1:
        others = dict(zip(model.denoisers, others.values(), strict=True))
    for name in model.denoisers:
        if name not in others:
            raise ModelError(f"{like}: has {', '.join(others)}, and {model.name} has {name}, too")
    likes = {name: read_like(others[name]) for name in model.denoisers}
    for name, each in likes.items():
        recipe = each.recipe()
        each.check_shapes(Weights(model.denoisers[name]), name)
        denoiser = skeleton(model.denoisers[name])
        layers = modulation_layers(denoiser, block_paths(denoiser, recipe)) if each.ranks else {}
        each.check_ranks([layer for names in layers.values() for layer in names])
    return likes


def _group(name: str, group: Mapping[str, Any], shapes: Shapes) -> UnitGroup:
    """A group as far as a manifest says it. Raises ValueError."""
    if group["kind"] not in (HEADS, NEURONS):
        raise ValueError(f"{name}: kind {group['kind']!r:.40}")
    parts = tuple(
        UnitPart(tensor, int(dim), places_of(runs, group["num_units"]))
        for tensor, dims in group["parts"].items()
        for dim, runs in dims.items()
        if _are_inside(name, runs, group["num_units"], shapes[tensor][int(dim)])
    )
    return UnitGroup(name, group["kind"], group["block"], group["num_units"], (), parts, ())


def _are_inside(name: str, runs: Any, num_units: Any, size: Any) -> bool:
    """Whether runs lie in a dimension of this size. Raises ValueError where they do not."""
    for start, length, step in runs:
        whole = (start, length, step, num_units, size)
        fits = all(type(value) is int for value in whole) and size <= _MOST_PLACES
        if not (fits and start >= 0 and 1 <= length <= step and num_units >= 1):
            raise ValueError(f"{name}: {[start, length, step]!r:.60} is no run of places")
        if start + (num_units - 1) * step + length > size:
            raise ValueError(f"{name}: {[start, length, step]} reaches beyond {size} places")
    return bool(runs)
