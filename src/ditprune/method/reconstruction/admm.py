"""How does ADMM choose and update? It chooses a mask and fits the kept weights, in turns."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Float32
from torch import Tensor

from ditprune.errors import RecipeError
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

_SMALLEST = torch.finfo(torch.float32).tiny
# For the error at a share on the way to larger ones: steps that choose the mask, steps, and steps
# of conjugate gradients.
_STEPS_OF_CURVE, _SUPPORT_OF_CURVE = (4, 6), 3
_State = tuple[Tensor, Tensor]  # V and U


def solve_on_support(
    start_OI: Float32[Tensor, "out in"],
    target_OI: Float32[Tensor, "out in"],
    gram_II: Float32[Tensor, "in in"],
    keep_OI: Bool[Tensor, "out in"],
    num_steps: int,
) -> Float32[Tensor, "out in"]:
    """Minimise ½ z H zᵀ − b zᵀ over each row z that is zero outside its mask.

    Conjugate gradients, every row with its own steps: a step is one product [O, I] × [I, I], where
    an exact solution would factor a matrix for each row. Every step lowers every row's objective.

    Args:
        start_OI: where to begin, zero outside the mask.
        target_OI: b, in the rows' order.
        gram_II: H, symmetric and positive; best with a unit diagonal.
        keep_OI: True where a row may differ from zero.
        num_steps: 0 returns the start.
    """
    solution_OI = start_OI.clone()
    residual_OI = (target_OI - start_OI @ gram_II).mul_(keep_OI)
    direction_OI = residual_OI.clone()
    square_O1 = residual_OI.square().sum(1, keepdim=True)
    for _ in range(num_steps):
        change_OI = (direction_OI @ gram_II).mul_(keep_OI)
        curvature_O1 = (direction_OI * change_OI).sum(1, keepdim=True)
        # A row that has arrived has direction zero, and stays.
        length_O1 = square_O1 / curvature_O1.clamp_min(_SMALLEST)
        solution_OI.addcmul_(direction_OI, length_O1)
        residual_OI.addcmul_(change_OI, length_O1, value=-1)
        before_O1, square_O1 = square_O1, residual_OI.square().sum(1, keepdim=True)
        direction_OI.mul_(square_O1 / before_O1.clamp_min(_SMALLEST)).add_(residual_OI)
    return solution_OI


@dataclass(frozen=True)
class ADMM:
    """Minimise ‖(W − Z)X‖² + λ‖W − Z‖² over Z with the mask's zeros, in normalised units.

    Source: Boža, arXiv 2401.02938, Algorithms 1 and 2. V is his W, with its penalty ρ towards
    Z − U; where the mask is to be chosen, it is the best of |V + U| at every step of a ramp on
    which the removed share rises as 1 − (1 − t)³. The last iterate is then brought closer to the
    minimum on its mask by conjugate gradients.

    Args:
        penalty: ρ, relative to a unit diagonal.
        num_steps: steps of alternating directions.
        num_ramp_steps: the first of these steps, which choose the mask; at least 1.
        num_support_steps: steps of conjugate gradients at the end.
        damping: λ, relative to a unit diagonal; it keeps weights that the calibration does not
            determine.
    """

    penalty: float = 1.0
    num_steps: int = 30
    num_ramp_steps: int = 15
    num_support_steps: int = 10
    damping: float = 1e-4
    name: ClassVar[str] = "admm"
    needs: ClassVar[frozenset[type]] = frozenset({Gram})

    def __post_init__(self) -> None:
        check_numbers(self)
        if not (0 < self.penalty < math.inf and 0 <= self.damping < math.inf):
            raise RecipeError(
                f"admm: penalty {self.penalty} and damping {self.damping} given; expected a "
                "penalty above 0 and a damping from 0 up"
            )
        if not (0 < self.num_ramp_steps <= self.num_steps and self.num_support_steps >= 0):
            raise RecipeError(
                f"admm: {self.num_steps} steps, {self.num_ramp_steps} of them to choose the mask, "
                f"and {self.num_support_steps} at the end given; expected 0 < ramp ≤ steps, 0 ≤ end"
            )

    @property
    def num_products(self) -> int:
        """Products [O, I] × [I, I] for one mask, its target and errors among them."""
        return self.num_steps + self.num_support_steps + 4

    @property
    def num_products_of_error(self) -> int:
        """The same for the error at one share of a curve."""
        return _STEPS_OF_CURVE[1] + _SUPPORT_OF_CURVE + 2

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
        damped_II, shifted_II = problem.gram.clone(), problem.gram.clone()
        damped_II.diagonal().add_(self.damping)
        shifted_II.diagonal().add_(self.damping).add_(self.penalty)
        inverse_II = torch.cholesky_inverse(torch.linalg.cholesky(shifted_II))
        return _Solver(self, weight, problem, damped_II, inverse_II, problem.weight @ damped_II)


@dataclass(frozen=True, eq=False)
class _Solver:
    """The problem of one layer, for any mask.

    Args:
        damped: H + λ I of the problem.
        inverse: of H + (λ + ρ) I.
        target: W (H + λ I).
    """

    method: ADMM
    weight: Tensor
    problem: Normalised
    damped: Float32[Tensor, "in in"]
    inverse: Float32[Tensor, "in in"]
    target: Float32[Tensor, "out in"]

    def __call__(self, mask: Bool[Tensor, "out in"] | Choice) -> LayerResult:
        method, problem, weight = self.method, self.problem, self.weight
        free_OI, dual_OI, keep_OI = self._alternate(
            self._start(), mask, method.num_ramp_steps, method.num_steps
        )
        update_OI = self._solved((free_OI + dual_OI) * keep_OI, keep_OI, method.num_support_steps)
        result = best_rows(
            weight,
            problem.restore(update_OI, weight, keep_OI),
            keep_OI,
            row_errors(problem.weight - update_OI, problem.gram),
            row_errors(problem.weight * ~keep_OI, problem.gram),
            method.damping,
        )
        return replace(result, error=problem.error(result.error))

    def errors(self, choices: Sequence[Choice]) -> Iterator[float]:
        """Of choices that keep fewer and fewer: one ramp goes through all, few steps for each."""
        free_OI, dual_OI = self._start()
        num_removed = 0
        for choice in choices:
            num_remove = choice.group_size - choice.num_keep
            begin = num_removed / num_remove if num_remove else 0.0
            free_OI, dual_OI, keep_OI = self._alternate(
                (free_OI, dual_OI), choice, *_STEPS_OF_CURVE, begin
            )
            update_OI = self._solved((free_OI + dual_OI) * keep_OI, keep_OI, _SUPPORT_OF_CURVE)
            error = row_errors(self.problem.weight - update_OI, self.problem.gram).sum().item()
            yield self.problem.error(error)
            num_removed = num_remove

    def _start(self) -> _State:
        return self.problem.weight, torch.zeros_like(self.problem.weight)

    def _alternate(
        self, state: _State, mask: Tensor | Choice, num_ramp_steps: int, num_steps: int,
        begin: float = 0.0,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        """V, U and the mask after some steps; `begin` is the share of the removal before them."""
        free_OI, dual_OI = state
        keep_OI = mask if isinstance(mask, Tensor) else torch.ones_like(free_OI, dtype=torch.bool)
        for step in range(num_steps):
            dual_OI = dual_OI + free_OI  # V + U, of which Z is the kept part and U the rest
            if isinstance(mask, Choice) and step < num_ramp_steps:
                ramp = 1 - (1 - (step + 1) / num_ramp_steps) ** 3
                keep_OI = mask(dual_OI.abs(), begin + (1 - begin) * ramp)
            kept_OI = dual_OI * keep_OI
            dual_OI -= kept_OI
            towards_OI = self.target + self.method.penalty * (kept_OI - dual_OI)
            free_OI = towards_OI @ self.inverse
        return free_OI, dual_OI, keep_OI

    def _solved(self, start_OI: Tensor, keep_OI: Tensor, num_steps: int) -> Tensor:
        return solve_on_support(start_OI, self.target, self.damped, keep_OI, num_steps)
