"""What takes the place of a Linear whose rank was cut? Two Linears, called as it was."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ditprune.errors import ModelError


@dataclass(frozen=True, eq=False)
class Factors:
    """The parameters of a `LowRank`.

    Args:
        down: [r, C_in].
        up: [C_out, r].
        bias: [C_out].
    """

    down: Tensor
    up: Tensor
    bias: Tensor


class LowRank(nn.Module):
    """x ↦ U D x + b, with D [r, C_in] and U [C_out, r], which have fewer weights than U D has."""

    def __init__(
        self, in_features: int, out_features: int, rank: int,
        device: torch.device | str | None = None, dtype: torch.dtype | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.in_features, self.out_features, self.rank = in_features, out_features, rank
        self.down = nn.Linear(in_features, rank, bias=False, device=device, dtype=dtype)
        self.up = nn.Linear(rank, out_features, device=device, dtype=dtype)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - the name that Linear has for it
        return self.up(self.down(input))

    @property
    def weight(self) -> Tensor:
        """U D, a new tensor, for code that asks a Linear for the dtype or the values of its
        weight; what is written into it is lost.
        """
        return self.up.weight @ self.down.weight

    @property
    def bias(self) -> Tensor:
        return self.up.bias

    @property
    def num_weights(self) -> int:
        """Of both matrices."""
        return self.rank * (self.in_features + self.out_features)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, rank={self.rank}"


def to_low_rank_(module: nn.Module, ranks: Mapping[str, Any]) -> None:
    """Put two Linears without values, on the meta device, in the place of each of these.

    Args:
        ranks: by the path of a Linear; from a file, so that they are checked here.

    Raises ModelError.
    """
    for name, rank in ranks.items():
        layer = _layer(module, name)
        num_out, num_in = layer.out_features, layer.in_features
        most = min(num_out, num_in)
        if isinstance(rank, bool) or not isinstance(rank, int) or not 0 < rank <= most:
            raise ModelError(f"{name}: its rank is {rank!r}; expected a whole number, 1 to {most}")
        _put(module, name, LowRank(num_in, num_out, rank, "meta", _weight(layer).dtype))


@torch.no_grad()
def set_low_rank_(module: nn.Module, factors: Mapping[str, Factors]) -> None:
    """Put two Linears with these values in the place of each Linear, or of two that are there.

    Raises ModelError where there is neither, or of another size.
    """
    for name, given in factors.items():
        layer = _layer(module, name)
        rank, num_in = given.down.shape
        num_out = len(given.up)
        if (num_out, num_in) != (layer.out_features, layer.in_features):
            raise ModelError(
                f"{name} is [{layer.out_features}, {layer.in_features}]; two Linears of "
                f"[{num_out}, {num_in}] do not fit in its place"
            )
        new, trains = LowRank(num_in, num_out, rank, "meta"), _weight(layer).requires_grad
        new.down.weight = nn.Parameter(given.down, requires_grad=trains)
        new.up.weight = nn.Parameter(given.up, requires_grad=trains)
        new.up.bias = nn.Parameter(given.bias, requires_grad=trains)
        _put(module, name, new.train(layer.training))


def _layer(module: nn.Module, name: str) -> nn.Linear | LowRank:
    try:
        layer = module.get_submodule(name)
    except AttributeError as error:
        raise ModelError(f"{type(module).__name__} has no layer '{name}'") from error
    if type(layer) is not nn.Linear and not isinstance(layer, LowRank):
        raise ModelError(f"{name} is a {type(layer).__name__}; expected a plain nn.Linear")
    return layer


def _weight(layer: nn.Linear | LowRank) -> Tensor:
    """A parameter, which tells dtype and whether it trains."""
    return layer.up.weight if isinstance(layer, LowRank) else layer.weight


def _put(module: nn.Module, name: str, layer: nn.Module) -> None:
    path, _, leaf = name.rpartition(".")
    module.get_submodule(path)._modules[leaf] = layer
