"""Which saliencies are products of powers? Magnitude, Wanda, STW, and any two exponents."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from ditprune.errors import RecipeError
from ditprune.method.statistics.column_norm import ColumnNorm

_LARGEST_POWER = 16


@dataclass(frozen=True)
class Power:
    """I_ij = |W_ij|^m · ‖X_j‖₂^n with m = weight_power and n = activation_power.

    Source: arXiv 2607.00927, Eq. 6. Within one group only the ratio n / m changes the order.
    """

    weight_power: float
    activation_power: float
    name: ClassVar[str] = "power"
    is_rowwise: ClassVar[bool] = True
    is_product: ClassVar[bool] = True
    is_monotone: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_powers(weight_power=self.weight_power, activation_power=self.activation_power)

    @property
    def needs(self) -> frozenset[type]:
        return frozenset({ColumnNorm}) if self.activation_power else frozenset()

    def __call__(
        self, weight: Float[Tensor, "out in"], norm: Float[Tensor, " in"] | None = None
    ) -> Float[Tensor, "out in"]:
        return power_score(weight, norm, self.weight_power, self.activation_power)


def check_powers(**powers: Any) -> None:
    """Raises RecipeError for exponents that are no numbers from 0 to 16."""
    for name, value in powers.items():
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not (is_number and 0 <= value <= _LARGEST_POWER):
            flag = "--" + name.replace("_", "-")
            raise RecipeError(f"{flag} {value}: expected a power from 0 to {_LARGEST_POWER}")


def power_score(
    weight_OI: Float[Tensor, "out in"],
    norm_I: Float[Tensor, " in"] | None,
    weight_power: float,
    activation_power: float,
) -> Float[Tensor, "out in"]:
    """Scores [C_out, C_in]; higher is kept. `norm_I` may be None where n = 0.

    In float32; for a weight in float64 in that, which holds what float32 rounds to 0 or to Inf.
    """
    dtype = torch.promote_types(weight_OI.dtype, torch.float32)
    scores_OI = weight_OI.detach().to(dtype, copy=True)
    if weight_power != 2:
        scores_OI.abs_()
    power_(scores_OI, weight_power)
    if activation_power:
        assert norm_I is not None
        scores_OI *= power_(norm_I.to(scores_OI.device, dtype, copy=True), activation_power)
    return scores_OI


def power_(values: Float[Tensor, "..."], exponent: float) -> Float[Tensor, "..."]:
    """`values ** exponent` in place, with the same bits whatever the number of threads.

    Vector and scalar `pow` may differ in the last bit, and which elements take which depends on
    how threads split the tensor; so common exponents use correctly rounded operations, and all
    others go through float64, where such a difference vanishes in the rounding.
    """
    if exponent == 1:
        return values
    if exponent == 2:
        return values.square_()
    if exponent == 0.5:
        return values.sqrt_()
    if exponent == 0:
        return values.fill_(1)
    return values.copy_(values.double().pow_(exponent))


@dataclass(frozen=True)
class Magnitude:
    """I_ij = |W_ij|. Needs no calibration. Source: Han et al., arXiv 1506.02626."""

    name: ClassVar[str] = "magnitude"
    is_rowwise: ClassVar[bool] = True
    is_product: ClassVar[bool] = True
    is_monotone: ClassVar[bool] = True
    needs: ClassVar[frozenset[type]] = frozenset()

    def __call__(
        self, weight: Float[Tensor, "out in"], norm: Float[Tensor, " in"] | None = None
    ) -> Float[Tensor, "out in"]:
        return power_score(weight, None, 1, 0)


@dataclass(frozen=True)
class Wanda:
    """I_ij = |W_ij| · ‖X_j‖₂. Source: Sun et al., arXiv 2306.11695; arXiv 2607.00927, Eq. 4."""

    name: ClassVar[str] = "wanda"
    is_rowwise: ClassVar[bool] = True
    is_product: ClassVar[bool] = True
    is_monotone: ClassVar[bool] = True
    needs: ClassVar[frozenset[type]] = frozenset({ColumnNorm})

    def __call__(
        self, weight: Float[Tensor, "out in"], norm: Float[Tensor, " in"] | None = None
    ) -> Float[Tensor, "out in"]:
        return power_score(weight, norm, 1, 1)


@dataclass(frozen=True)
class STW(Power):
    """I_ij = |W_ij|² · ‖X_j‖₂; other exponents are a `Power`. Source: arXiv 2607.00927, Eq. 7."""

    weight_power: float = field(default=2, init=False)
    activation_power: float = field(default=1, init=False)
    name: ClassVar[str] = "stw"
