"""GELU behind a sparse layer, applied by the kernel while a tile of sums is at hand.

On its own it reads and writes an output of many MB, and torch maps its memory anew each time.
"""

from __future__ import annotations

from typing import cast

import torch
from diffusers.models.activations import GELU
from torch import Tensor, nn
from torch.nn.modules import module as modules

from ditprune.runtime.sparse_linear import SparseLinear


class FusedGELU(GELU):
    """diffusers' GELU, by tanh, whose Linear runs sparse; in all other ways the same."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        """[..., C_in] → [..., C_out]; as two steps where anyone could see what lies between."""
        if torch.is_grad_enabled() or torch.compiler.is_compiling() or _is_watched(self.proj):
            output: Tensor = super().forward(hidden_states)
            return output
        return cast(SparseLinear, self.proj).forward_gelu(hidden_states)


def fuse_(denoiser: nn.Module) -> None:
    """Let each sparse layer apply the GELU that follows it, in place."""
    for module in denoiser.modules():
        if type(module) is GELU and module.approximate == "tanh" and _is_sparse(module.proj):
            module.__class__ = FusedGELU


def unfuse_(denoiser: nn.Module) -> None:
    """Undo `fuse_`."""
    for module in denoiser.modules():
        if type(module) is FusedGELU:
            module.__class__ = GELU  # type: ignore[assignment]  # a class above it


def _is_sparse(layer: nn.Module) -> bool:
    return type(layer) is SparseLinear


def _is_watched(layer: nn.Module) -> bool:
    """Whether more than the layer's own forward runs when it is called."""
    hooks = (
        layer._forward_hooks, layer._forward_pre_hooks, layer._backward_hooks,
        layer._backward_pre_hooks, modules._has_any_global_hook(),
    )  # fmt: skip
    return any(hooks) or "forward" in vars(layer) or not _is_sparse(layer)
