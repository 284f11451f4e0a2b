"""HOW THE REST IS UPDATED: new values for the kept weights of a layer, one method per file.

A reconstruction is a frozen dataclass of its constants with a `name`, the statistics it `needs`,
and `__call__(weight [C_out, C_in], mask, gram [C_in, C_in]) → LayerResult`. The mask is given; or
it is a `Choice`, and the method chooses the mask during the update. On the inputs of the Gram, no
method does worse than zeroing the same weights.
"""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor

from ditprune.method.reconstruction.admm import ADMM
from ditprune.method.reconstruction.layer import Choice, LayerResult, Nothing
from ditprune.method.reconstruction.obs import OBS


class Reconstruction(Protocol):
    """What the pruning loop needs from a reconstruction."""

    @property
    def name(self) -> str: ...

    @property
    def needs(self) -> frozenset[type]: ...

    def __call__(self, weight: Tensor, mask: Tensor | Choice, gram: Tensor) -> LayerResult: ...


RECONSTRUCTIONS: dict[str, Any] = {"none": Nothing, "obs": OBS, "admm": ADMM}
