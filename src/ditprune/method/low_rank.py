"""Which rank does a layer need for its inputs, and which two matrices of that rank are nearest?

With C = L Lᵀ the covariance of the inputs and W L = U S Vᵀ, the nearest of rank r is
U_r S_r V_rᵀ L⁻¹ = U_r U_rᵀ W: the principal directions of the outputs. So C needs no inverse, which
it does not have where inputs span few directions. The bias takes the mean of what goes.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Float64
from torch import Tensor

MULTIPLE = 8  # ranks are multiples of it, where they can be
AUTO_ERROR = 1e-5
_NOISE = 1e-10  # of the mean variance of the inputs; what is less is rounding
_ROUNDED = 1e-13  # of the largest eigenvalue; a smaller one is rounding
_NOTHING = 1e-8  # of the outputs' energy; what gives less is not looked at


@dataclass(frozen=True, eq=False)
class InputSpread:
    """Around which mean, along which directions, and how far a layer's inputs lie.

    Args:
        mean: [C_in].
        axes: eigenvectors of the covariance times the roots of their eigenvalues, the longest
            first; none is shorter than rounding, [C_in, C_in].
    """

    mean: Float64[Tensor, " in"]
    axes: Float64[Tensor, "in in"]

    @classmethod
    def of(cls, inputs: Float[Tensor, "rows in"]) -> InputSpread:
        inputs_NI = exact(inputs)
        mean_I = inputs_NI.mean(0)
        centred_NI = inputs_NI - mean_I
        values_I, vectors_II = torch.linalg.eigh(centred_NI.T @ centred_NI / len(inputs_NI))
        values_I, vectors_II = values_I.flip(0), vectors_II.flip(1)
        least = _NOISE * values_I.clamp_min(0).mean()
        least = torch.where(least > 0, least, 1.0)  # all inputs are the same
        return cls(mean_I, vectors_II * values_I.clamp_min(least).sqrt())


@dataclass(frozen=True, eq=False)
class LowRankFit:
    """Two matrices in place of a layer's weight.

    Args:
        down: [r, C_in], in the dtype of the weight, as are the others.
        up: [C_out, r].
        bias: [C_out].
        error: of the outputs for inputs that the fit has not seen, over their energy.
        num_before: weights that the layer had.
    """

    down: Tensor
    up: Tensor
    bias: Tensor
    error: float
    num_before: int

    @property
    def rank(self) -> int:
        return len(self.down)

    @property
    def num_weights(self) -> int:
        return self.down.numel() + self.up.numel()

    @property
    def share(self) -> float:
        """Of the layer's weights that went."""
        return 1 - self.num_weights / self.num_before


@dataclass(frozen=True, eq=False)
class RankProblem:
    """A layer, and inputs that it gets.

    Args:
        weight: [C_out, C_in].
        bias: [C_out]; None where it has none.
        spread: of the inputs to fit.
        aside: inputs that are not among these.
        num_weights: those that the layer has.
        dtype: in which the two matrices are kept.
    """

    weight: Tensor
    bias: Tensor | None
    spread: InputSpread
    aside: Float[Tensor, "rows in"]
    num_weights: int
    dtype: torch.dtype

    def at_share(self, share: float) -> LowRankFit:
        """With this share of the weights gone."""
        return self.at_rank(
            rank_at(share, self.num_weights, len(self.weight), self.weight.shape[1])
        )

    def at_rank(self, rank: int) -> LowRankFit:
        return self._measured(self._turned(rank)[0][:, :rank])

    def within(self, error: float = AUTO_ERROR) -> LowRankFit | int:
        """Of the least rank whose error is no larger; where two matrices of it would not be fewer
        weights, the rank that it would take.
        """
        most = (self.num_weights - 1) // sum(self.weight.shape)
        turned_IR, scales_R = self._turned(min(MULTIPLE, most))
        errors_R, rounding = self._errors(turned_IR * scales_R), 0.0
        for _ in range(2):  # what rounding to the dtype adds is known after the first time
            is_within = errors_R <= error - rounding
            least = int(is_within.nonzero()[0]) + 1 if is_within.any() else min(self.weight.shape)
            if least > most:
                return least
            rank = min(-(-least // MULTIPLE) * MULTIPLE, most, len(errors_R))
            fit = self._measured(turned_IR[:, :rank])
            if fit.error <= error:
                return fit
            rounding = fit.error - float(errors_R[rank - 1])
        return min(self.weight.shape)

    def _turned(self, num_least: int) -> tuple[Float64[Tensor, "in rank"], Float64[Tensor, "rank"]]:
        """Axes turned so that their outputs are orthogonal, the longest first, and what makes these
        of length 1. There are at least so many; what the others would give is nothing.
        """
        axes_II = self._here(self.spread.axes)
        through_II = self._gram @ axes_II
        energies_I = (axes_II * through_II).sum(0)
        rest_I = energies_I.flip(0).cumsum(0).flip(0)
        energy = rest_I[0] + self._mean_output.square().sum()
        num = max(int((rest_I > _NOTHING * energy).sum()), num_least, 1)
        num = min(-(-num // MULTIPLE) * MULTIPLE, *self.weight.shape)
        squares_R, turn_RR = torch.linalg.eigh(axes_II[:, :num].T @ through_II[:, :num])
        is_sure = squares_R > _ROUNDED * squares_R[-1].clamp_min(0)
        scales_R = torch.where(is_sure, squares_R, torch.inf).rsqrt()
        return axes_II[:, :num] @ turn_RR.flip(1), scales_R.flip(0)

    def _errors(self, turned: Float64[Tensor, "in rank"]) -> Float64[Tensor, "rank"]:
        """At each rank from 1 up, of axes whose outputs have length 1."""
        inputs_NI = self._here(self.aside) - self._here(self.spread.mean)
        along_R = (inputs_NI @ self._gram @ turned).square().sum(0)
        return (self._moved.square().sum() - along_R.cumsum(0)).clamp_min(0) / self._energy

    def _measured(self, turned: Float64[Tensor, "in rank"]) -> LowRankFit:
        """Along the outputs of these axes; the error is that of matrices as they are kept."""
        directions_OR = torch.linalg.qr(self._weight @ turned).Q
        down, up = ((directions_OR.T @ self._weight).to(self.dtype), directions_OR.to(self.dtype))
        mean_O = exact(up) @ (exact(down) @ self._here(self.spread.mean))
        bias = (self._mean_output - mean_O).to(self.dtype)
        outputs_NO = self._here(self.aside) @ exact(down).T @ exact(up).T + exact(bias)
        difference_NO = outputs_NO - self._mean_output - self._moved
        error = float(difference_NO.square().sum() / self._energy)
        down, up, bias = (part.to(self.weight.device) for part in (down, up, bias))
        return LowRankFit(down, up, bias, error, self.num_weights)

    @cached_property
    def _gram(self) -> Float64[Tensor, "in in"]:
        return self._weight.T @ self._weight

    @cached_property
    def _weight(self) -> Float64[Tensor, "out in"]:
        return exact(self.weight)

    @cached_property
    def _mean_output(self) -> Float64[Tensor, " out"]:
        outputs_O = self._weight @ self._here(self.spread.mean)
        return outputs_O if self.bias is None else outputs_O + exact(self.bias)

    @cached_property
    def _moved(self) -> Float64[Tensor, "rows out"]:
        """Outputs for the inputs aside, less that for the mean."""
        return (self._here(self.aside) - self._here(self.spread.mean)) @ self._weight.T

    @cached_property
    def _energy(self) -> float:
        """Of the outputs for the inputs aside; 1 for a layer that gives zeros."""
        return float((self._moved + self._mean_output).square().sum()) or 1.0

    def _here(self, values: Tensor) -> Tensor:
        return exact(values).to(self._weight.device)


def rank_at(share: float, num_weights: int, num_out: int, num_in: int) -> int:
    """The largest rank at which two matrices have at most the rest of the weights; 0 for none."""
    rank = int((1 - share) * num_weights / (num_out + num_in) + 1e-9)
    return rank // MULTIPLE * MULTIPLE if rank >= MULTIPLE else rank


def exact(values: Tensor) -> Float64[Tensor, "..."]:
    """In float64, on the CPU where a device has none."""
    return (values.cpu() if values.device.type == "mps" else values).double()
