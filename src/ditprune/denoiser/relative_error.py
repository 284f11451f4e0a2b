"""How far the pruned model's predicted noise is from the dense model's."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class RelativeError:
    """Sums over calls: ‖ε_pruned − ε_dense‖² and ‖ε_dense‖²."""

    sum_difference: float = 0.0
    sum_dense: float = 0.0


def update(
    state: RelativeError, pruned: Float[Tensor, "*noise"], dense: Float[Tensor, "*noise"]
) -> RelativeError:
    """Add the predictions of one call."""
    return RelativeError(
        state.sum_difference + (pruned.double() - dense.double()).square().sum().item(),
        state.sum_dense + dense.double().square().sum().item(),
    )


def compute(state: RelativeError) -> float:
    """mean‖ε_pruned − ε_dense‖² / mean‖ε_dense‖²."""
    return state.sum_difference / state.sum_dense
