"""What the tests on a CUDA device share; the internals they name are imported here alone."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ditprune as package

DEVICE = "cuda"
marks = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine"),
]


def distill(**constants: Any) -> Any:
    """A refinement of few steps."""
    from ditprune.method.distill import Distill

    return Distill(**{"num_steps": 4, "batch_size": 4, **constants})


def always_two_of_four() -> Any:
    """The backend for GPUs, by whose clock every layer gains."""
    from ditprune.runtime.backends import SemiStructured

    class Always(SemiStructured):
        def seconds(self, works: list[Any], *_: Any) -> list[float]:
            return [2.0, 1.0]

    return Always()


def placed(tree: Any, device: str = DEVICE, dtype: torch.dtype | None = None) -> package.Call:
    """A call with its tensors on a device, and those of many axes in a dtype."""

    def move(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        is_sample = leaf.is_floating_point() and leaf.ndim > 2
        return leaf.to(device, dtype if is_sample else None)

    return package.Call.of(tree).map(move)


def moved(stats: package.Statistics, device: str) -> package.Statistics:
    """The same statistics on a device; layers that share a state go on sharing it."""
    seen: dict[int, Any] = {}

    def move(state: Any) -> Any:
        if id(state) not in seen:
            tensors = {
                field.name: getattr(state, field.name).to(device)
                for field in dataclasses.fields(state)
                if isinstance(getattr(state, field.name), Tensor)
            }
            seen[id(state)] = dataclasses.replace(state, **tensors)
        return seen[id(state)]

    norms = {name: move(state) for name, state in stats.column_norms.items()}
    return dataclasses.replace(stats, column_norms=norms)


def output(denoiser: nn.Module, call: Any) -> Tensor:
    """The prediction for one call, on the CPU in float32."""
    one = package.Call.of(call)
    with torch.no_grad():
        return denoiser(*one.args, **one.kwargs, return_dict=False)[0].float().cpu()


def far(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())
