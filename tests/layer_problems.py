"""Layers to reconstruct, the masks asked of them, and the error that counts."""

from __future__ import annotations

import torch
from torch import Tensor

from ditprune.method.granularity import NM, PerChannel, PerLayer
from ditprune.method.reconstruction.layer import Choice

GROUPS = {"layer": PerLayer(), "channel": PerChannel(), "2:4": NM(2, 4), "4:8": NM(4, 8)}


def layer(
    num_out: int = 12, num_in: int = 40, seed: int = 0, num_tokens: int = 200
) -> tuple[Tensor, Tensor]:
    """A weight [C_out, C_in] and the Gram of inputs that go together, in channels of any size."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(num_tokens, num_in, generator=generator)
    blend = torch.randn(num_in, num_in, generator=generator) / num_in**0.5
    scale = torch.randn(num_in, generator=generator).exp()
    inputs = (inputs @ (torch.eye(num_in) + blend)) * scale
    weight = torch.randn(num_out, num_in, generator=generator) / scale.sqrt()
    return weight, inputs.T @ inputs


def choice(name: str, sparsity: float, shape: tuple[int, ...]) -> Choice:
    _, size = GROUPS[name].group_shape(*shape)
    return Choice(size, GROUPS[name].num_keep(size, sparsity))


def any_mask(shape: tuple[int, ...], seed: int = 0, share: float = 0.5) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < share


def error_of(weight: Tensor, new: Tensor, gram: Tensor) -> float:
    """‖(W − W')X‖² in float64."""
    difference, gram = (weight - new).double(), gram.double()
    return ((difference @ gram) * difference).sum().item()
