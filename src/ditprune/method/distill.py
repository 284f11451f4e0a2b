"""HOW THE WHOLE SETTLES: what are the constants of the gradient steps after a reconstruction?"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from ditprune.errors import RecipeError
from ditprune.method.constants import check_numbers

HELD_BACK = 0.08


@dataclass(frozen=True)
class Distill:
    """Adam on the kept weights towards the dense denoiser's own predictions.

    Args:
        num_steps: number of gradient steps.
        learning_rate: the largest one; it warms up shortly and falls to zero as a cosine. None
            takes 8e-3 · √(the error before), which fitted every sparsity that was tried.
        batch_size: rows of calibration calls in each step.
        block_weight: weight of the error of all block outputs, beside the denoiser's own error.
        mixing: the largest angle, in radians, by which a noisy input is rotated towards another
            of the same timestep; 0 trains on the calibration inputs as they are. The dense
            denoiser gives the target of each mixture, so a few hundred inputs become many.
        held_back: share of the removal that is left for the training; only for recipes with
            `mask="refinement"`, whose default is 0.08.
        seed: seed of the order of rows and of the mixtures.
    """

    num_steps: int = 1200
    learning_rate: float | None = None
    batch_size: int = 32
    block_weight: float = 1.0
    mixing: float = math.pi / 4
    held_back: float | None = None
    seed: int = 0
    name: ClassVar[str] = "distill"

    def __post_init__(self) -> None:
        check_numbers(self)
        is_rate = self.learning_rate is None or self.learning_rate > 0
        is_possible = self.num_steps >= 1 and self.batch_size >= 1 and is_rate
        is_mixing = 0 <= self.mixing <= math.pi / 2
        is_share = 0 <= self.share_held_back < 1
        if not (is_possible and is_mixing and is_share and self.block_weight >= 0):
            raise RecipeError(
                f"{self}: expected at least one step and one row, a learning rate above 0, a block "
                "weight from 0 up, mixing from 0 to π/2 and 0 ≤ held_back < 1"
            )

    @property
    def share_held_back(self) -> float:
        """`held_back`, or its default."""
        return HELD_BACK if self.held_back is None else self.held_back


REFINEMENTS = {"none": None, "distill": Distill}
