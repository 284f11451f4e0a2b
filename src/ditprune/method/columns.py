"""Which columns of matrices go, in units, and what becomes of the rest?

The optimal brain surgeon (Hassibi and Stork, 1993) on columns: removing the columns S of W costs
tr(W_S ((H⁻¹)_SS)⁻¹ W_Sᵀ), the error that the best change of all other columns leaves. H is the
covariance of the inputs where a bias makes up for the mean, else XᵀX.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor

from ditprune.errors import StatisticsError

_DAMPING = 1e-4  # of the diagonal's mean; more only where H is not positive with it
_LARGEST_DAMPING = 100.0


@dataclass(frozen=True, eq=False)
class Moments:
    """Of a layer's inputs x, over tokens that count as they are weighted.

    Args:
        products: Σ x xᵀ, [C_in, C_in].
        sums: Σ x, [C_in].
        total: how much all tokens count together.
    """

    products: Float[Tensor, "in in"]
    sums: Float[Tensor, " in"]
    total: float

    @property
    def mean(self) -> Float32[Tensor, " in"]:
        return (self.sums / self.total).float()

    def matrix(self, has_bias: bool) -> Float32[Tensor, "in in"]:
        """What errors are counted by: without the part that a bias makes up for."""
        if not has_bias:
            return self.products.float()
        sums = self.sums.double()
        return (self.products.double() - torch.outer(sums, sums) / self.total).float()


@dataclass(frozen=True, eq=False)
class Reader:
    """A matrix whose columns read units.

    Args:
        weight: [C_out, C_in].
        matrix: H, [C_in, C_in].
        rows: how much the error of each output channel counts, [C_out].
        columns: by group, the columns of each of its units, [num_units, width].
    """

    weight: Float[Tensor, "out in"]
    matrix: Float[Tensor, "in in"]
    rows: Float[Tensor, " out"]
    columns: Mapping[str, Int64[Tensor, "unit width"]]


@dataclass(frozen=True)
class Supply:
    """Units of a group that may go.

    Args:
        num_units: of the group.
        batch: so many go together.
        least: so many stay.
        price: of one unit.
    """

    num_units: int
    batch: int
    least: int
    price: float


@dataclass(frozen=True)
class Removal:
    """Units of a group that go together, and the error that this adds."""

    group: str
    units: tuple[int, ...]
    cost: float
    price: float


def removals(readers: Sequence[Reader], supplies: Mapping[str, Supply]) -> list[Removal]:
    """The order in which the units of groups go that matrices read together: at each step the
    batch that costs least for its price.
    """
    states = [_State.of(reader) for reader in readers]
    left = {name: list(range(supply.num_units)) for name, supply in supplies.items()}
    order: list[Removal] = []
    while True:
        offers = [
            offer
            for name, supply in supplies.items()
            if (offer := _offer(states, name, supply, left[name])) is not None
        ]
        if not offers:
            return order
        best = min(offers, key=lambda offer: offer.cost / offer.price)
        cost = sum(state.remove_(best.group, best.units) for state in states)
        order.append(Removal(best.group, best.units, max(0.0, cost), best.price))
        gone = set(best.units)
        left[best.group] = [unit for unit in left[best.group] if unit not in gone]


def _offer(
    states: Sequence[_State], name: str, supply: Supply, left: Sequence[int]
) -> Removal | None:
    """The next batch of a group, and about what it costs; None where no more may go."""
    size = len(left) % supply.batch or supply.batch
    if len(left) - size < supply.least:
        return None
    parts = [state.costs(name, left) for state in states if name in state.columns]
    costs_U = torch.stack(parts).sum(0)
    cheapest = costs_U.topk(size, largest=False)
    units = tuple(sorted(left[i] for i in cheapest.indices.tolist()))
    return Removal(name, units, float(cheapest.values.sum()), size * supply.price)


@dataclass(eq=False)
class _State:
    """A reader once some units have gone: W updated, and the inverse of H over what is left."""

    update: Float32[Tensor, "out in"]
    inverse: Float32[Tensor, "in in"]
    columns: Mapping[str, Tensor]

    @classmethod
    def of(cls, reader: Reader) -> _State:
        update = reader.weight.float() * reader.rows.float().sqrt()[:, None]
        return cls(update, inverse_of(reader.matrix), reader.columns)

    def costs(self, group: str, units: Sequence[int]) -> Float32[Tensor, " unit"]:
        """What each of these units costs by itself."""
        places_UW = self.columns[group][list(units)].to(self.update.device)
        if places_UW.shape[1] == 1:
            places_U = places_UW[:, 0]
            squares_U = self.update[:, places_U].square().sum(0)
            return squares_U / self.inverse.diagonal()[places_U]
        inverse_UWW = self.inverse[places_UW[:, :, None], places_UW[:, None, :]]
        update_UWO = self.update.T[places_UW]
        return (update_UWO * torch.linalg.solve(inverse_UWW, update_UWO)).sum((1, 2))

    def remove_(self, group: str, units: Sequence[int]) -> float:
        """Take units out; returns what that costs."""
        if group not in self.columns:
            return 0.0
        places_S = self.columns[group][list(units)].reshape(-1).to(self.update.device)
        rows_SI = self.inverse[places_S]
        update_OS = self.update[:, places_S]
        lower_SS = torch.linalg.cholesky(rows_SI[:, places_S])
        shares_SO = torch.cholesky_solve(update_OS.T, lower_SS)
        cost = float((update_OS.T * shares_SO).sum())
        self.update -= shares_SO.T @ rows_SI
        half_SI = torch.linalg.solve_triangular(lower_SS, rows_SI, upper=False)
        self.inverse -= half_SI.T @ half_SI
        # What has gone keeps away from what is left: zero but for rounding, which would grow.
        self.update[:, places_S] = 0
        self.inverse[places_S], self.inverse[:, places_S] = 0, 0
        return cost


def least_squares(
    weight: Float[Tensor, "out in"],
    matrix: Float[Tensor, "in in"],
    stay: Int64[Tensor, " stay"],
) -> Float32[Tensor, "out stay"]:
    """The columns that stay, changed so that they make up for the others as well as they can.

    Source: W' = W H_{:,K} (H_KK + λI)⁻¹, the minimum of tr((W − W'_K) H (W − W'_K)ᵀ).
    """
    weight, matrix = weight.float(), matrix.float()
    gone = torch.ones(len(matrix), dtype=torch.bool, device=matrix.device)
    gone[stay] = False
    inverse_KK = inverse_of(matrix[stay][:, stay])
    # W' − W_K in place of W' itself: what stays loses nothing to damping.
    return weight[:, stay] + weight[:, gone] @ (matrix[gone][:, stay] @ inverse_KK)


def inverse_of(
    matrix_II: Float[Tensor, "in in"], damping: float = _DAMPING
) -> Float32[Tensor, "in in"]:
    """(H + λI)⁻¹ with the least λ, from this share of the diagonal's mean upwards, that works.

    Raises StatisticsError where not even a hundred times the diagonal helps.
    """
    mean = matrix_II.diagonal().mean().clamp_min(torch.finfo(torch.float32).tiny)
    while damping <= _LARGEST_DAMPING:
        damped_II = matrix_II.clone()
        damped_II.diagonal().add_(damping * mean)
        lower_II, failed = torch.linalg.cholesky_ex(damped_II)
        if not failed:
            return torch.cholesky_inverse(lower_II)
        damping *= 10
    raise StatisticsError(
        "the products of a layer's inputs are not positive even with a hundred times their "
        "diagonal added; calibrate again"
    )
