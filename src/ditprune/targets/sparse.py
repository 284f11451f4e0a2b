"""Layers that run sparse hold a copy of their weight, so what is pruned there would be lost."""

from __future__ import annotations

from torch import nn

from ditprune.errors import ModelError
from ditprune.targets import exceptions


def refuse_sparse(denoiser: nn.Module) -> None:
    """Raises ModelError where layers of a denoiser were swapped for sparse ones."""
    swapped = [
        name
        for name, module in denoiser.named_modules()
        if type(module).__name__ in exceptions.SPARSE_CLASSES
    ]
    if swapped:
        raise ModelError(
            f"{type(denoiser).__name__}: {len(swapped)} layers run sparse (first {swapped[0]}), "
            "and their weights are packed; call ditprune.runtime.desparsify_(denoiser) first, and "
            "sparsify_ again afterwards"
        )
