"""Multiply-accumulates of one denoiser call, counted while it runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ditprune.calibration.replay import run_call
from ditprune.calls import Call


@dataclass(frozen=True)
class Macs:
    """Args:
    total: of matrix products, convolutions and attention.
    targets: the part of it that is each target's.
    """

    total: int
    targets: Mapping[str, int]

    def effective(self, zeros: Mapping[str, float]) -> float:
        """Without the products by zero weights, given each target's share of zeros."""
        return self.total - sum(self.targets[name] * zeros.get(name, 0.0) for name in self.targets)


def count_macs(denoiser: nn.Module, call: Call, targets: Iterable[str]) -> Macs:
    """Run one call and count; on the meta device it takes no time and no memory.

    A multiplication and its addition are one, as in the papers on DiT and PixArt that call them
    flops. Normalisations, activations and embeddings do not count.
    """
    own: dict[str, int] = dict.fromkeys(targets, 0)

    def hook(name: str) -> Any:
        def see(layer: nn.Module, inputs: tuple[Any, ...], _output: Any) -> None:
            weight = layer.get_parameter("weight")
            positions = _positions(layer, inputs[0])
            own[name] += positions * weight.numel()

        return see

    handles = [denoiser.get_submodule(name).register_forward_hook(hook(name)) for name in own]
    counter = FlopCounterMode(display=False)
    try:
        # The fused kernel of the CPU is unknown to the counter, the plain one is products.
        with counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
            run_call(denoiser, call)
    finally:
        for handle in handles:
            handle.remove()
    return Macs(counter.get_total_flops() // 2, own)


def _positions(layer: nn.Module, entering: Tensor) -> int:
    """How many vectors a layer multiplies: tokens, or pixels of a pointwise convolution."""
    weight = layer.get_parameter("weight")
    return entering.numel() // weight.shape[1]
