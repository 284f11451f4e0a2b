"""How large was the error to be, and how large is it?"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

from ditprune.reporting.told import measured_error


@dataclass(frozen=True)
class ErrorBound:
    """The relative error of the predicted noise that decided a share.

    Args:
        asked: the `max_error` of the recipe.
        expected: on calibration rows at the share that was taken, below `asked`; where there is a
            refinement, before it.
        measured: of the pruned denoiser, on rows that nothing else has seen.
        num_rows: rows that were kept aside for it.
    """

    asked: float
    expected: float
    measured: float
    num_rows: int

    def __post_init__(self) -> None:
        """Raises ValueError for numbers that no run leads to."""
        if not 0 < self.asked < math.inf:
            raise ValueError(f"max_error: {self.asked!r} asked, expected a number above 0")
        if not 0 <= self.expected < self.asked:
            raise ValueError(
                f"max_error: {self.expected!r} expected, not below the {self.asked!r} asked for"
            )
        if self.measured < 0 or not isinstance(self.num_rows, int) or self.num_rows < 1:
            raise ValueError(
                f"max_error: {self.measured!r} measured on {self.num_rows!r} rows, expected a "
                "number from 0 up on at least one row"
            )

    @property
    def holds(self) -> bool:
        """Whether the measured error is below what was asked for."""
        return self.measured < self.asked

    def line(self) -> str:
        """All of it in one sentence."""
        return (
            f"relative error of the predicted noise: below {self.asked:.3g} asked, "
            f"{self.expected:.3g} expected, {measured_error(asdict(self))}"
        )
