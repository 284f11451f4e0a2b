"""What a feature extractor saw in a stream of images; FID, KID and their like are of that."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Seen:
    """Batches of what was seen, [n, …] each.

    Args:
        pooled: features for FID, KID, precision and recall.
        spatial: features before pooling, flattened, for sFID.
        logits: of classes, for the Inception Score.
    """

    pooled: tuple[Tensor, ...] = ()
    spatial: tuple[Tensor, ...] = ()
    logits: tuple[Tensor, ...] = ()

    @property
    def widths(self) -> tuple[int, int]:
        """How many pooled and spatial features an image has; 0 where nobody looked."""
        return tuple(one[0].shape[1] if one else 0 for one in (self.pooled, self.spatial))  # type: ignore[return-value]

    def all_pooled(self) -> Float[Tensor, "n f"]:
        return torch.cat(self.pooled).double()

    def all_spatial(self) -> Float[Tensor, "n s"]:
        return torch.cat(self.spatial).double()

    def all_logits(self) -> Float[Tensor, "n c"]:
        return torch.cat(self.logits).double()


def update(state: Seen, more: Seen) -> Seen:
    """Add what was seen in a batch."""
    return Seen(
        state.pooled + more.pooled, state.spatial + more.spatial, state.logits + more.logits
    )
