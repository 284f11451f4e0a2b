"""The size of the weight alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float, Float32
from torch import Tensor

from ditprune.saliency.power import power_score


@dataclass(frozen=True)
class Magnitude:
    """I_ij = |W_ij|. Needs no calibration. Source: Han et al., arXiv 1506.02626."""

    name: ClassVar[str] = "magnitude"
    is_rowwise: ClassVar[bool] = True
    needs: ClassVar[frozenset[type]] = frozenset()

    def __call__(
        self, weight: Float[Tensor, "out in"], norm: Float[Tensor, " in"] | None
    ) -> Float32[Tensor, "out in"]:
        return power_score(weight, None, 1, 0)
