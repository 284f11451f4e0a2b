"""Which weights does a refinement step? Adam's in float32, whatever dtype the denoiser has.

A step of a cosine's end is smaller than the spacing of half-precision weights, and gradients in
float16 underflow. So weights in half precision have a copy in float32, which Adam steps and from
which they are rounded; and in float16 the loss is scaled by a power of two.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from ditprune.errors import ModelError
from ditprune.targets.matrix import as_matrix

_BETAS = (0.9, 0.99)
_FIRST_SCALE, _FALL, _LAST_SCALE = 2.0**16, 2.0**-4, 2.0**-16
_HALVES = (torch.float16, torch.bfloat16)


class Trained:
    """Weights under training by Adam.

    Args:
        weights: by target, the denoiser's own parameters.
    """

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        self._weights = weights
        # Those that are no halves are stepped in place.
        self._masters = {
            name: torch.nn.Parameter(weight.detach().float()) if weight.dtype in _HALVES else weight
            for name, weight in weights.items()
        }
        self._optimizer = torch.optim.Adam(self._masters.values(), betas=_BETAS, foreach=True)
        is_narrow = any(weight.dtype == torch.float16 for weight in weights.values())
        self._scale = _FIRST_SCALE if is_narrow else 1.0

    def step_(
        self, rate: float, backward: Callable[[float], None], keep: Mapping[str, Tensor]
    ) -> None:
        """One step; what is not kept stays zero.

        Args:
            backward: leaves gradients on the weights, times the number that it is given.

        Raises ModelError where a gradient is NaN or Inf.
        """
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        while not self._take(backward):
            if self._scale in (1.0, _LAST_SCALE):
                raise ModelError(
                    "the refinement's gradients hold NaN or Inf; run the denoiser in float32 or "
                    "bfloat16, or pass --refinement none with --mask reconstruction"
                )
            self._scale *= _FALL
        self._optimizer.step()
        with torch.no_grad():
            for name, master in self._masters.items():
                master.mul_(keep[name].view(master.shape))
            self._round()

    def _take(self, backward: Callable[[float], None]) -> bool:
        """Put new gradients onto the masters; whether all are finite."""
        for name, weight in self._weights.items():
            weight.grad = self._masters[name].grad = None
        backward(self._scale)
        for name, weight in self._weights.items():
            master = self._masters[name]
            if master is not weight and weight.grad is not None:
                master.grad = weight.grad.float() / self._scale
                weight.grad = None
        gradients = [m.grad for m in self._masters.values() if m.grad is not None]
        return all(bool(gradient.isfinite().all()) for gradient in gradients)

    @torch.no_grad()
    def set_(self, name: str, weight: Tensor) -> None:
        """Give a target this weight [C_out, C_in]."""
        self._masters[name].copy_(weight.view(self._masters[name].shape))
        self._round()

    def unreached(self) -> list[str]:
        """Targets that no gradient has reached."""
        states = self._optimizer.state
        return [name for name, m in self._masters.items() if "exp_avg_sq" not in states.get(m, {})]

    @torch.no_grad()
    def scores(self) -> dict[str, Tensor]:
        """W² √v of every weight that a gradient has reached, as matrices."""
        scores = {}
        for name, master in self._masters.items():
            v = self._optimizer.state.get(master, {}).get("exp_avg_sq")
            if v is not None:
                scores[name] = as_matrix(_score(name, master, v))
        return scores

    def _round(self) -> None:
        for name, weight in self._weights.items():
            if self._masters[name] is not weight:
                weight.copy_(self._masters[name])


def _score(name: str, weight: Tensor, v: Tensor) -> Tensor:
    """W² √v in float32, or in float64 where float32 rounds it to 0 or to Inf."""
    score = (weight.square() * v.sqrt()).float()
    lost = (score < torch.finfo(torch.float32).tiny) & (weight != 0) & (v != 0)
    if not lost.any() and score.isfinite().all():
        return score
    if not v.isfinite().all() or weight.device.type == "mps":  # which has no float64
        raise ModelError(
            f"{name}: the squares of its gradients are beyond float32, so a refinement cannot "
            "choose its mask; exclude it, or pass --mask reconstruction"
        )
    return weight.double().square() * v.double().sqrt()
