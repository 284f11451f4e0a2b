"""What goes from a denoiser, and what is that expected to cost?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ditprune.shrinking.modulation import Wanted
from ditprune.shrinking.plan import ShrinkPlan
from ditprune.shrinking.recipe import ShrinkRecipe
from ditprune.shrinking.shapes import clustered
from ditprune.shrinking.units import Cut


@dataclass(frozen=True, eq=False)
class CutChoice:
    """What goes from a denoiser.

    Args:
        modulation: what becomes of its rank.
        errors: by group, the relative error that is expected where only its units go.
        ratio: the share of the price of all units that goes.
        error: expected relative error of the predicted noise.
        error_of_free_choice: what it would be without a limit of shapes; None where it is not known
            what units cost.
    """

    cut: Cut
    modulation: Wanted
    errors: Mapping[str, float]
    ratio: float
    error: float
    notes: tuple[str, ...] = ()
    error_of_free_choice: float | None = None


def chosen_by(plan: ShrinkPlan, recipe: ShrinkRecipe) -> CutChoice:
    """By what units cost. Raises RecipeError where as much cannot go."""
    free = plan.counts(recipe)
    counts = clustered(plan, free, recipe)
    nothing = dict.fromkeys(counts, 0)
    errors = {name: plan.error({**nothing, name: count}) for name, count in counts.items()}
    return CutChoice(
        plan.cut(counts), recipe.modulation, errors, plan.ratio(counts), plan.error(counts),
        error_of_free_choice=plan.error(free),
    )  # fmt: skip
