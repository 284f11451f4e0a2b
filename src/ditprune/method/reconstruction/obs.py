"""How does SparseGPT choose and update? The optimal brain surgeon, column by column."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Float32
from torch import Tensor

from ditprune.errors import RecipeError, StatisticsError
from ditprune.method.constants import check_numbers
from ditprune.method.reconstruction.layer import (
    Choice,
    LayerResult,
    Normalised,
    Solve,
    best_rows,
    normalise,
    row_errors,
)
from ditprune.method.statistics.gram import Gram

_LARGEST_DAMPING = 100.0
_NUM_CHOICES = 8


@dataclass(frozen=True)
class OBS:
    """Remove columns from first to last; each removed weight's error goes to the columns after it.

    Source: Frantar and Alistarh, SparseGPT, arXiv 2301.00774, Algorithm 1, in normalised units.
    If it chooses the mask, a weight scores W_ij² / (H⁻¹)_jj, or the root of that, with H over the
    columns that are still to come. N:M is chosen when a group is reached; other groups are chosen
    among all columns still to come, about eight times in all, before a block of columns.

    Args:
        block_size: columns whose updates of later columns are applied together.
        damping: added to the unit diagonal of H; multiplied by ten until H is positive.
    """

    block_size: int = 128
    damping: float = 0.01
    name: ClassVar[str] = "obs"
    needs: ClassVar[frozenset[type]] = frozenset({Gram})

    def __post_init__(self) -> None:
        check_numbers(self)
        if self.block_size < 1 or not 0 < self.damping < math.inf:
            raise RecipeError(
                f"obs: block size {self.block_size} and damping {self.damping} given; expected a "
                "block of at least 1 and a damping above 0"
            )

    def __call__(
        self,
        weight: Float[Tensor, "out in"],
        mask: Bool[Tensor, "out in"] | Choice,
        gram: Float[Tensor, "in in"],
    ) -> LayerResult:
        return self.prepare(weight, gram)(mask)

    def prepare(self, weight: Float[Tensor, "out in"], gram: Float[Tensor, "in in"]) -> Solve:
        """For several masks of one layer: the Gram is factored once."""
        problem = normalise(weight, gram)
        return partial(self._solve, weight, problem, *inverse_factor(problem.gram, self.damping))

    def _solve(
        self, weight: Tensor, problem: Normalised, factor_II: Tensor, damping: float,
        mask: Tensor | Choice,
    ) -> LayerResult:  # fmt: skip
        # Columns are rows here, so that a column lies together in memory.
        update_IO = problem.weight.T.clone(memory_format=torch.contiguous_format)
        choose, keep_IO = None, torch.ones_like(update_IO, dtype=torch.bool)
        if isinstance(mask, Choice):
            choose = mask
        else:
            keep_IO = mask.T.contiguous()
        damped_error_O = update_IO.new_zeros(update_IO.shape[1])
        in_block = choose if choose and choose.splits_into(self.block_size) else None
        # A choice among all columns takes as long as a block: some are enough.
        stride = self.block_size * max(1, len(update_IO) // self.block_size // _NUM_CHOICES)
        for first in range(0, len(update_IO), self.block_size):
            if choose and not in_block and first % stride == 0:
                keep_IO = _choose_ahead(choose, update_IO, keep_IO, factor_II.diagonal(), first)
            block = slice(first, min(first + self.block_size, len(update_IO)))
            errors_BO = _sweep_(update_IO[block], keep_IO[block], factor_II[block, block], in_block)
            damped_error_O += errors_BO.square().sum(0)
            update_IO[block.stop :].addmm_(factor_II[block, block.stop :].T, errors_BO, alpha=-1)
        keep_OI, update_OI = keep_IO.T.contiguous(), update_IO.T.contiguous()
        # The squares of a row's errors sum to D (H + λI) Dᵀ, so no product with H is needed.
        distance_O = (problem.weight - update_OI).square_().sum(1)
        result = best_rows(
            weight,
            problem.restore(update_OI, weight, keep_OI),
            keep_OI,
            damped_error_O.sub_(distance_O, alpha=damping).clamp_min_(0),
            row_errors(problem.weight * ~keep_OI, problem.gram),
            damping,
        )
        return replace(result, error=problem.error(result.error))


def inverse_factor(
    gram_II: Float32[Tensor, "in in"], damping: float
) -> tuple[Float32[Tensor, "in in"], float]:
    """Upper R with RᵀR = (H + λI)⁻¹, and the λ that was needed.

    Raises StatisticsError if not even a hundred times the diagonal helps.
    """
    while damping <= _LARGEST_DAMPING:
        damped_II = gram_II.clone()
        damped_II.diagonal().add_(damping)
        lower_II, failed = torch.linalg.cholesky_ex(damped_II)
        if not failed:
            inverse_II = torch.cholesky_inverse(lower_II)
            upper_II, failed = torch.linalg.cholesky_ex(inverse_II, upper=True)
            if not failed:
                return upper_II, damping
        damping *= 10
    raise StatisticsError(
        "the Gram of a layer's inputs is not positive even with a hundred times its diagonal "
        "added; expected XᵀX, so calibrate again"
    )


def _sweep_(
    update_BO: Float32[Tensor, "block out"],
    keep_BO: Bool[Tensor, "block out"],
    factor_BB: Float32[Tensor, "block block"],
    choose: Choice | None,
) -> Float32[Tensor, "block out"]:
    """Go through a block's columns, in place; returns each column's error over its diagonal."""
    errors_BO = torch.empty_like(update_BO)
    diagonal = factor_BB.diagonal().tolist()
    for i in range(len(update_BO)):
        if choose is not None and i % choose.group_size == 0:
            group = slice(i, i + choose.group_size)
            scores = (update_BO[group] / factor_BB.diagonal()[group, None]).abs()
            keep_BO[group] = choose(scores.T.contiguous()).T
        removed_O = update_BO[i].masked_fill(keep_BO[i], 0)
        errors_BO[i] = removed_O / diagonal[i]
        update_BO[i + 1 :].addr_(factor_BB[i, i + 1 :], errors_BO[i], alpha=-1)
        update_BO[i] -= removed_O
    return errors_BO


def _choose_ahead(
    choose: Choice,
    update_IO: Float32[Tensor, "in out"],
    keep_IO: Bool[Tensor, "in out"],
    diagonal_I: Float32[Tensor, " in"],
    first: int,
) -> Bool[Tensor, "in out"]:
    """The mask of all columns; columns before `first` keep the mask they have."""
    scores_IO = (update_IO / diagonal_I[:, None]).abs()
    scores_IO[:first].masked_fill_(keep_IO[:first], math.inf)
    scores_IO[:first].masked_fill_(~keep_IO[:first], -math.inf)
    return choose(scores_IO.T.contiguous()).T.contiguous()
