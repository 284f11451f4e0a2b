"""HOW THE WHOLE SETTLES: what are the constants of the gradient steps after a reconstruction?"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

from ditprune.errors import RecipeError
from ditprune.method.constants import check_numbers

HELD_BACK = 0.08


INPUTS, TAILS = ("pruned", "dense"), ("auto", "none")
_MOST_ROWS, _FEWEST_ROWS, _ENOUGH_TOKENS = 16, 2, 256  # of a batch that trains one block
_ROWS_OF_WHOLE = 32
_TAIL_SHARE = 4


@dataclass(frozen=True)
class Distill:
    """Adam on the kept weights towards what the dense denoiser gives.

    Where the denoiser runs block by block, each block is trained by itself, then all together for
    a short tail. Elsewhere all are trained together.

    Args:
        num_steps: number of gradient steps, of each block or of all together.
        learning_rate: the largest one; it warms up shortly and falls to zero as a cosine. None
            takes 8e-3 · √(the error before), which fitted every sparsity that was tried.
        batch_size: rows of calibration calls in each step. None takes 32 where all are trained
            together, and 2 to 16 for a block, until they hold 256 tokens.
        block_weight: weight of the error of all block outputs, beside the denoiser's own error,
            where all are trained together.
        mixing: the largest angle, in radians, by which a noisy input is rotated towards another
            of the same timestep; 0 trains on the calibration inputs as they are. The dense
            denoiser gives the target of each mixture, so a few hundred inputs become many. Where
            blocks are trained one by one, nothing is mixed.
        held_back: share of the removal that is left for the training; only for recipes with
            `mask="refinement"`, whose default is 0.08.
        seed: seed of the order of rows and of the mixtures.
        inputs: what a block gets while it is trained: what the `pruned` blocks before it give, so
            that it makes up for their errors, or the `dense` ones, so that processes share blocks.
        tail: `auto` trains all together after the blocks, for a quarter of the steps, where memory
            holds the denoiser; `none` never does.
    """

    num_steps: int = 400
    learning_rate: float | None = None
    batch_size: int | None = None
    block_weight: float = 1.0
    mixing: float = math.pi / 4
    held_back: float | None = None
    seed: int = 0
    inputs: str = INPUTS[0]
    tail: str = TAILS[0]
    name: ClassVar[str] = "distill"

    def __post_init__(self) -> None:
        check_numbers(self)
        for word, known in (("inputs", INPUTS), ("tail", TAILS)):
            if getattr(self, word) not in known:
                raise RecipeError(
                    f"{self.name}: {word} is {getattr(self, word)!r:.60}, expected "
                    f"{' or '.join(known)}"
                )
        is_rate = self.learning_rate is None or self.learning_rate > 0
        has_rows = self.batch_size is None or self.batch_size >= 1
        is_possible = self.num_steps >= 1 and has_rows and is_rate
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

    @property
    def rows_of_whole(self) -> int:
        """Rows of a step that trains all together."""
        return _ROWS_OF_WHOLE if self.batch_size is None else self.batch_size

    def rows_of_block(self, num_tokens: int) -> int:
        """Rows of a step that trains a block whose rows hold so many tokens."""
        if self.batch_size is not None:
            return self.batch_size
        enough = math.ceil(_ENOUGH_TOKENS / max(1, num_tokens))
        return min(_MOST_ROWS, max(_FEWEST_ROWS, enough))

    def of_tail(self) -> Distill | None:
        """The steps after the blocks; None without."""
        num_steps = self.num_steps // _TAIL_SHARE
        if self.tail == "none" or not num_steps:
            return None
        return replace(self, num_steps=num_steps, mixing=0.0, held_back=None)


REFINEMENTS = {"none": None, "distill": Distill}
