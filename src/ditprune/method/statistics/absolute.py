"""What are the mean and the maximum of |X| over all tokens and channels (paper, Appendix A)?"""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Absolute:
    """The sum of absolute values, their number, and the largest one."""

    total: float = 0.0
    count: int = 0
    largest: float = 0.0

    @property
    def mean(self) -> float:
        """The mean of |X|; 0 without values."""
        return self.total / self.count if self.count else 0.0


def update(state: Absolute, inputs: Float[Tensor, "*tokens in"]) -> Absolute:
    """Add a layer's input of any rank and dtype."""
    if not inputs.numel():
        return state
    values = inputs.detach().float().abs()
    total = values.sum(-1).cpu().double().sum().item()  # float32 along channels, float64 across
    return Absolute(
        state.total + total, state.count + values.numel(), max(state.largest, values.max().item())
    )
