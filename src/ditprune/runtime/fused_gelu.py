"""How is the GELU behind a sparse layer fused into it? The kernel applies it to each tile of sums.

A separate GELU reads and writes an output of many MB, whose memory torch maps again each time.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn.modules import module as modules

from ditprune.runtime.sparse_linear import SparseLinear

_NAME = "FusedGELU"


def fuse_(denoiser: nn.Module) -> None:
    """Let each sparse layer apply diffusers' GELU that follows it, in place.

    Only the approximation by tanh is fused, which DiTs use.
    """
    dense, fused = _classes()
    for module in denoiser.modules():
        if (
            type(module) is dense
            and module.approximate == "tanh"
            and type(module.proj) is SparseLinear
        ):
            module.__class__ = fused


def unfuse_(denoiser: nn.Module) -> None:
    """Undo `fuse_`."""
    dense, _ = _classes()
    for module in denoiser.modules():
        if isinstance(module, Fused):
            module.__class__ = dense


class Fused:
    """diffusers' GELU module, a Linear followed by GELU, whose Linear runs sparse."""

    proj: nn.Module
    approximate: str
    gelu: Callable[[Tensor], Tensor]

    def forward(self, hidden_states: Tensor) -> Tensor:
        """[..., C_in] → [..., C_out]; in two steps if anything can observe the value between.

        A caller may have kept this method after the module is diffusers' own again.
        """
        is_fusable = self.approximate == "tanh" and "gelu" not in self.__dict__
        if (
            not is_fusable or torch.is_grad_enabled() or torch.compiler.is_compiling()
            or _is_watched(self.proj)
        ):  # fmt: skip
            return self.gelu(self.proj(hidden_states))
        assert isinstance(self.proj, SparseLinear)
        return self.proj.forward_gelu(hidden_states)


@cache
def _classes() -> tuple[type, type]:
    """diffusers' GELU, and the fused subclass of it."""
    from diffusers.models.activations import GELU

    return GELU, type(_NAME, (Fused, GELU), {"__module__": __name__})


def __getattr__(name: str) -> type:
    """The fused class by its name, by which pickle finds it."""
    if name != _NAME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return _classes()[1]


def _is_watched(layer: nn.Module) -> bool:
    """Whether calling a layer runs more than a sparse layer's forward."""
    hooks = (
        layer._forward_hooks, layer._forward_pre_hooks, layer._backward_hooks,
        layer._backward_pre_hooks, modules._global_forward_hooks, modules._global_backward_hooks,
        modules._global_forward_pre_hooks, modules._global_backward_pre_hooks,
    )  # fmt: skip
    return any(hooks) or "forward" in layer.__dict__ or type(layer) is not SparseLinear
