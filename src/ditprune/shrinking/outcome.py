"""What became of a denoiser that was shrunk?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ditprune.denoisers import DENOISER, qualified
from ditprune.shrinking.chosen import CutChoice
from ditprune.shrinking.plan import ShrinkPlan
from ditprune.shrinking.prices import Size
from ditprune.shrinking.recipe import ShrinkRecipe
from ditprune.shrinking.units import Whole


@dataclass(frozen=True)
class ShrunkPart:
    """An attention or MLP.

    Args:
        kind: `heads` or `neurons`.
        num_units: before.
        kept: the units that stay, ascending.
        error: expected relative error of the predicted noise that their removal adds.
    """

    kind: str
    num_units: int
    kept: tuple[int, ...]
    error: float


@dataclass(frozen=True)
class ShrunkRank:
    """A modulation layer that became two Linears.

    Args:
        error: of its own output, relative, on conditions and timesteps aside.
    """

    rank: int
    num_weights: int
    num_weights_before: int
    error: float


@dataclass(frozen=True)
class ShrinkOutcome:
    """What `shrink_` did; of one denoiser, or of several together.

    Args:
        before, after: sizes of the denoiser.
        ratio: the share of the price of the layers named by the recipe's parts that went.
        error: expected relative error of the predicted noise, without the rank of modulation.
        error_of_free_choice: what it would be without a limit of shapes.
        parts: by attention or MLP, those that lost units or could have.
        whole: by attention or MLP, why all of its units stay.
        ranks: by modulation layer.
        notes: what else a user should know.
        denoisers: by component.
    """

    recipe: ShrinkRecipe
    before: Size
    after: Size
    ratio: float
    error: float
    error_of_free_choice: float
    parts: Mapping[str, ShrunkPart]
    whole: Mapping[str, str]
    ranks: Mapping[str, ShrunkRank]
    notes: tuple[str, ...] = ()
    component: str = DENOISER
    members: Mapping[str, ShrinkOutcome] = field(default_factory=dict)

    @property
    def denoisers(self) -> Mapping[str, ShrinkOutcome]:
        """The outcome of each denoiser by its component, also where there is only one."""
        return self.members or {self.component: self}

    @classmethod
    def joined(cls, outcomes: Mapping[str, ShrinkOutcome]) -> ShrinkOutcome:
        """One for all denoisers of a pipeline."""
        first = next(iter(outcomes.values()))
        if len(outcomes) == 1:
            return first

        def of_all(word: str) -> dict[str, Any]:
            return qualified({name: getattr(part, word) for name, part in outcomes.items()})

        def sizes(word: str) -> Size:
            each = [getattr(part, word) for part in outcomes.values()]
            return Size(
                sum(size.num_macs for size in each),
                sum(size.num_parameters for size in each),
                sum(size.num_bytes for size in each),
            )

        count = len(outcomes)
        return cls(
            first.recipe, sizes("before"), sizes("after"),
            sum(part.ratio for part in outcomes.values()) / count,
            sum(part.error for part in outcomes.values()) / count,
            sum(part.error_of_free_choice for part in outcomes.values()) / count,
            of_all("parts"), of_all("whole"), of_all("ranks"),
            tuple(f"{name}: {note}" for name, part in outcomes.items() for note in part.notes),
            first.component, dict(outcomes),
        )  # fmt: skip


def shrink_outcome(
    plan: ShrinkPlan, chosen: CutChoice, recipe: ShrinkRecipe, after: Size,
    whole: Sequence[Whole], ranks: Mapping[str, Sequence[float]], notes: tuple[str, ...],
) -> ShrinkOutcome:  # fmt: skip
    """Of one denoiser.

    Args:
        ranks: by modulation layer, its rank, weights after and before, and error.
    """
    parts = {
        name: ShrunkPart(
            plan.groups[name].kind, plan.groups[name].num_units, tuple(stay), chosen.errors[name]
        )
        for name, stay in chosen.cut.kept.items()
    }
    by_layer = {
        name: ShrunkRank(int(rank), int(num_after), int(num_before), error)
        for name, (rank, num_after, num_before, error) in ranks.items()
    }
    free = chosen.error if (known := chosen.error_of_free_choice) is None else known
    return ShrinkOutcome(
        recipe, plan.prices.size(), after, chosen.ratio, chosen.error, free, parts,
        {part.name: part.reason for part in whole}, by_layer, (*chosen.notes, *notes),
    )  # fmt: skip


def outcome_from(claims: Mapping[str, Any], recipe: ShrinkRecipe, component: str) -> ShrinkOutcome:
    """What a denoiser's manifest says."""
    before, after = (Size(**claims["totals"][when]) for when in ("before", "after"))
    shapes = claims["base"]["shapes"]
    return ShrinkOutcome(
        recipe, before, after, claims["ratio"], claims["error"],
        claims["error"] if (free := claims["error_of_free_choice"]) is None else free,
        {
            name: ShrunkPart(
                group["kind"], group["num_units"], tuple(group["kept"]), group["error"] or 0.0
            )
            for name, group in claims["groups"].items()
        },
        {part["name"]: part["reason"] for part in claims["whole"]},
        {
            layer: _rank(record["rank"], _shape_of(shapes, layer), record["error"] or 0.0)
            for layer, record in claims["ranks"].items()
        },
        tuple(claims["notes"]), component,
    )  # fmt: skip


def _shape_of(shapes: Mapping[str, Sequence[int]], layer: str) -> tuple[int, int, int]:
    """A modulation layer's outputs, inputs and weights before it lost rank."""
    if f"{layer}.weight" in shapes:
        num_out, num_in = shapes[f"{layer}.weight"]
        return num_out, num_in, num_out * num_in
    (num_out, rank), (_, num_in) = shapes[f"{layer}.up.weight"], shapes[f"{layer}.down.weight"]
    return num_out, num_in, rank * (num_out + num_in)


def _rank(rank: int, shape: tuple[int, int, int], error: float) -> ShrunkRank:
    num_out, num_in, num_before = shape
    return ShrunkRank(rank, rank * (num_out + num_in), num_before, error)
