"""HOW MUCH IT MATTERS: a score for every weight, one formula and its source per file.

A saliency is a frozen dataclass of its constants with a `name`, the statistics it `needs`, and
`__call__(weight [C_out, C_in], norm [C_in]) → scores [C_out, C_in]`, higher is kept. One that does
not need `ColumnNorm` is called without `norm`.
A saliency whose scores of a row depend on that row alone may set `is_rowwise = True`; it is then
called with a few rows at a time. One whose scores are 0 only where a weight or a norm is 0 may set
`is_product = True`; other zeros are then rounding. One whose score never falls where the magnitude
of its weight grows, to the last bit, may set `is_monotone = True`: weights are then compared by
magnitude, column by column, which says the same in less time. Scores are float32; where float32
does not tell them apart, the saliency is called again with `weight` and `norm` in float64.
A new saliency needs its own file and a line in the dict below.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from torch import Tensor

from ditprune.method.saliency.power import STW, Magnitude, Power, Wanda
from ditprune.method.saliency.ria import RIA


class Saliency(Protocol):
    """What the pruning loop needs from a saliency."""

    @property
    def name(self) -> str: ...

    @property
    def needs(self) -> frozenset[type]: ...

    @property
    def __call__(self) -> Callable[..., Tensor]: ...


SALIENCIES: dict[str, Any] = {
    "magnitude": Magnitude,
    "wanda": Wanda,
    "stw": STW,
    "power": Power,
    "ria": RIA,
}
