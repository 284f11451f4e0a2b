"""HOW THE REST IS UPDATED: new values for the kept weights of a layer, one method per file.

A reconstruction is a frozen dataclass of its constants with a `name`, the statistics it `needs`,
and `__call__(weight [C_out, C_in], mask, gram [C_in, C_in]) → LayerResult`. The mask is given; or
it is a `Choice`, and the method chooses the mask during the update. On the inputs of the Gram, no
method does worse than zeroing the same weights. A method that needs `ColumnNorm` is called with
`norm` [C_in] too, and one that does not need `Gram` without `gram`. A method may have
`prepare`, which is called in place of it with all but the mask, and gives a function of the mask:
what it works out there serves every share at which a layer's cost is measured.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from ditprune.method.reconstruction.admm import ADMM
from ditprune.method.reconstruction.layer import LayerResult, Nothing
from ditprune.method.reconstruction.obs import OBS


class Reconstruction(Protocol):
    """What the pruning loop needs from a reconstruction."""

    @property
    def name(self) -> str: ...

    @property
    def needs(self) -> frozenset[type]: ...

    @property
    def __call__(self) -> Callable[..., LayerResult]: ...


RECONSTRUCTIONS: dict[str, Any] = {"none": Nothing, "obs": OBS, "admm": ADMM}
