"""HOW THE WHOLE SETTLES: constants of the gradient steps that may follow a reconstruction."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ditprune.errors import RecipeError


@dataclass(frozen=True)
class Distill:
    """Adam on the kept weights towards the dense denoiser's own predictions.

    Args:
        num_steps: of gradient.
        learning_rate: the largest; it warms up shortly and falls to zero as a cosine.
        batch_size: rows of calibration calls in each step.
        seed: of the order of rows.
    """

    num_steps: int = 1000
    learning_rate: float = 1e-3
    batch_size: int = 32
    seed: int = 0
    name: ClassVar[str] = "distill"

    def __post_init__(self) -> None:
        if self.num_steps < 1 or self.batch_size < 1 or not self.learning_rate > 0:
            raise RecipeError(
                f"distill: {self.num_steps} steps at {self.learning_rate} over {self.batch_size} "
                "rows given; expected at least one step and one row, and a rate above 0"
            )


REFINEMENTS = {"none": None, "distill": Distill}
