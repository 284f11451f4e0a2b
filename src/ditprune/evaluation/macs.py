"""Multiply-accumulates of one denoiser call, counted while it runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ditprune.calls import Call
from ditprune.denoiser.capture import counting_tokens
from ditprune.denoiser.replay import run_call


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
    layers = {name: denoiser.get_submodule(name) for name in targets}
    counter = FlopCounterMode(display=False)
    # The fused kernel of the CPU is unknown to the counter, the plain one is products.
    plain = sdpa_kernel(SDPBackend.MATH)
    with counting_tokens(layers) as num_tokens, counter, plain, torch.no_grad():
        run_call(denoiser, call)
    own = {
        name: sum(num_tokens[name]) * layer.get_parameter("weight").numel()
        for name, layer in layers.items()
    }
    return Macs(counter.get_total_flops() // 2, own)
