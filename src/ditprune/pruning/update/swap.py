"""How does a denoiser run with other weights for a while? The old bits come back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ditprune.targets.matrix import as_matrix


@contextmanager
def replaced(denoiser: nn.Module, weights: Mapping[str, Tensor]) -> Iterator[None]:
    """Other weights for as long as the block runs; the old bits come back."""
    before = {name: matrix_of(denoiser, name).clone() for name in weights}
    try:
        with torch.no_grad():
            for name, weight in weights.items():
                matrix_of(denoiser, name).copy_(weight)
        yield
    finally:
        with torch.no_grad():
            for name, weight in before.items():
                matrix_of(denoiser, name).copy_(weight)


@contextmanager
def exchanged(denoiser: nn.Module, weights: Mapping[str, Tensor]) -> Iterator[None]:
    """These tensors as weights for as long as the block runs; nothing is copied.

    Args:
        weights: by target, in the dtype and the shape of its parameter.
    """
    parameters = {name: denoiser.get_parameter(f"{name}.weight") for name in weights}
    before = {name: parameter.data for name, parameter in parameters.items()}
    try:
        for name, parameter in parameters.items():
            parameter.data = weights[name]
        yield
    finally:
        for name, parameter in parameters.items():
            parameter.data = before[name]


def matrix_of(denoiser: nn.Module, name: str) -> Tensor:
    """A target's weight as a matrix, a view."""
    return as_matrix(denoiser.get_parameter(f"{name}.weight").detach())
