"""No reconstruction: the kept weights stay as they are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Bool, Float
from torch import Tensor

from ditprune.reconstruction.adjusted import Adjusted, adjusted, row_errors
from ditprune.reconstruction.choice import Choice


@dataclass(frozen=True)
class Nothing:
    """W' = W on the mask; a `Choice` ranks by |W_ij| ‖X_j‖₂."""

    name: ClassVar[str] = "none"
    needs: ClassVar[frozenset[type]] = frozenset()

    def __call__(
        self,
        weight: Float[Tensor, "out in"],
        mask: Bool[Tensor, "out in"] | Choice,
        gram: Float[Tensor, "in in"],
    ) -> Adjusted:
        if isinstance(mask, Choice):
            mask = mask(weight.float().abs() * gram.diagonal().sqrt().float())
        error = row_errors(weight.float() * ~mask, gram)
        return adjusted(weight, weight.float() * mask, mask, error, error)
