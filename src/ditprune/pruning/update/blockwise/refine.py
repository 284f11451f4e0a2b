"""How is a block refined? Gradient steps on its kept weights towards what it gives when dense.

What it gets and is to give is in `teacher.py`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

from torch import Tensor

from ditprune.calls import Call
from ditprune.denoiser.blockwise.chain import Chain
from ditprune.denoiser.blockwise.residence import Residence
from ditprune.denoiser.blockwise.sweep import Make, Step
from ditprune.method.distill import Distill
from ditprune.method.recipe import Recipe
from ditprune.pruning.update.blockwise.run import BlockRefined, BlockUpdates
from ditprune.pruning.update.blockwise.teacher import BlockProblem, BlockTeacher, GainsOf
from ditprune.pruning.update.distill import rate_at, rate_for
from ditprune.pruning.update.gradients import training
from ditprune.pruning.update.layers import TargetUpdate, trained_updates
from ditprune.pruning.update.swap import matrix_of, replaced
from ditprune.pruning.update.thinning import Thinning, thin_, thinning_of
from ditprune.pruning.update.trained import Trained


class BlockRefinement:
    """Refines one block after the other, and carries its rows through them.

    One row in sixteen is kept aside: a block whose error on these does not fall keeps what its
    reconstruction gave.

    Args:
        gains_of: how much the output follows a block, by its number; None counts all alike.
    """

    def __init__(
        self, chain: Chain, residence: Residence, calls: Sequence[Call], recipe: Recipe,
        make: Make, gains_of: GainsOf,
    ) -> None:  # fmt: skip
        assert isinstance(recipe.refinement, Distill)
        self._denoiser, self._recipe, self._settings = chain.denoiser, recipe, recipe.refinement
        self._teacher = BlockTeacher(chain, residence, calls, self._settings, make, gains_of)
        self.follow = self._teacher.follow

    def __call__(self, step: Step, updates: BlockUpdates) -> BlockUpdates:
        """Refine a block that is resident and dense; it is left as it was. Then `follow` it."""
        return self._refined(step, updates, self._teacher.problem(step))

    def _refined(self, step: Step, updates: BlockUpdates, problem: BlockProblem) -> BlockUpdates:
        denoiser, settings = self._denoiser, self._settings
        last, first = updates.updates, updates.first_updates
        with replaced(denoiser, {name: update.weight for name, update in last.items()}):
            before = problem.error(self._teacher.aside)
        thin = None
        if self._recipe.mask == "refinement":
            thin = thinning_of(self._recipe, last, first)
        rate = rate_for(before, settings)
        with replaced(denoiser, {name: update.weight for name, update in first.items()}):
            keep, unreached = self._train_(step, problem, last, first, thin, rate)
            after = problem.error(self._teacher.aside)
            weights = {name: matrix_of(denoiser, name).float().clone() for name in last}
        told = BlockRefined(
            after < before, before, after if math.isfinite(after) else None, tuple(unreached)
        )
        if not told.is_taken:
            return replace(updates, first_updates=last, refined=told)
        is_joint = thin is not None and thin.is_joint
        trained = trained_updates(last, weights, keep, is_joint)
        return replace(updates, updates=trained, first_updates=trained, refined=told)

    def _train_(
        self, step: Step, problem: BlockProblem, last: Mapping[str, TargetUpdate],
        first: Mapping[str, TargetUpdate], thin: Thinning | None, rate: float,
    ) -> tuple[dict[str, Tensor], list[str]]:  # fmt: skip
        """Train the block's kept weights; its masks at the end, and targets without gradients."""
        denoiser, settings = self._denoiser, self._settings
        weights = {name: denoiser.get_parameter(f"{name}.weight") for name in first}
        keep = {name: update.keep for name, update in first.items()}
        settled = {name: (update.weight, update.keep) for name, update in last.items()}
        trained, count = Trained(weights), settings.num_steps
        batches = self._teacher.drawn(step.number)
        with training(step.block, list(weights.values())):
            for number in range(count):
                if thin and thin.is_due(number, count):
                    thin = thin_(trained, keep, thin, settled, number, count)
                backward = partial(problem.backward, next(batches))
                trained.step_(rate * rate_at(number, count), backward, keep)
        return keep, trained.unreached()
