"""What becomes of the projections that read units, so that they make up for those that go?"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ditprune.method.columns import least_squares
from ditprune.pruning.update.layers import check_fits
from ditprune.shrinking.moments import Demand
from ditprune.shrinking.units import Cut
from ditprune.targets.matrix import as_matrix


@dataclass(frozen=True, eq=False)
class Fitted:
    """A layer's weight and bias, as large as before, and zero in columns that go.

    Args:
        bias: None where it has none.
    """

    weight: Tensor
    bias: Tensor | None


Read = Callable[[str], tuple[Tensor, Tensor | None]]  # by layer, its weight as stored, and bias


@torch.no_grad()
def fitted(read: Read, cut: Cut, demands: Mapping[str, Demand]) -> dict[str, Fitted]:
    """The layers that read units which go, by least squares on the columns that stay.

    Raises ModelError for a weight that its dtype cannot represent.
    """
    layers = {c.layer for name in cut.kept for c in cut.groups[name].consumers}
    new: dict[str, Fitted] = {}
    for name in sorted(layers & demands.keys()):
        weight, bias = read(name)
        stay = cut.stay(f"{name}.weight", weight.shape).get(1)
        if stay is not None:
            new[name] = _fit(name, as_matrix(weight), bias, stay.to(weight.device), demands[name])
    return new


def _fit(name: str, weight: Tensor, bias: Tensor | None, stay: Tensor, followed: Demand) -> Fitted:
    moments = followed.moments
    update = torch.zeros_like(weight)
    part = least_squares(weight, moments.matrix(bias is not None), stay)
    check_fits(name, part, weight.dtype)
    update[:, stay] = part.to(weight.dtype)
    if bias is None:
        return Fitted(update, None)
    shift = (weight.float() - update.float()) @ moments.mean
    return Fitted(update, (bias.float() + shift).to(bias.dtype))
