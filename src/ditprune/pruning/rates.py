"""How fast is a machine at what updating weights does? By a short measurement, or as stated."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ditprune.errors import RecipeError
from ditprune.method.reconstruction.admm import ADMM
from ditprune.method.reconstruction.layer import Choice

DEFAULT_GPU_RATE = 40.0  # TFLOP/s: what one of the larger GPUs does in float32
# Of a GPU's rate: steps that choose masks read each weight some twenty times, and a Cholesky
# factor has few rows at a time.
SHARE_OF_UPDATES, SHARE_OF_FACTORS = 0.75, 0.25
_SIDE, _SIDE_ON_GPU, _NUM_PRODUCTS = 1024, 4096, 5  # small products keep no GPU busy


@dataclass(frozen=True)
class Rates:
    """Operations a second.

    Args:
        forwards: of the denoiser, in its dtype.
        products: in float32.
        updates: in float32, of the products of a reconstruction that chooses its own mask.
        factors: in float32, of a Cholesky factor and its inverse.
    """

    forwards: float
    products: float
    updates: float
    factors: float


@dataclass(frozen=True)
class Operations:
    """Operations of a stage, by what they are."""

    forwards: float = 0.0
    products: float = 0.0
    updates: float = 0.0
    factors: float = 0.0

    def seconds(self, rates: Rates) -> float:
        """How long it takes."""
        return (
            self.forwards / rates.forwards
            + self.products / rates.products
            + self.updates / rates.updates
            + self.factors / rates.factors
        )


def stated_rates(tflops: float = DEFAULT_GPU_RATE) -> Rates:
    """Of a GPU with this rate, in TFLOP/s."""
    rate = tflops * 1e12
    return Rates(rate, rate, SHARE_OF_UPDATES * rate, SHARE_OF_FACTORS * rate)


def as_gpu_rate(tflops: float | None) -> float:
    """What was given, or the default. Raises RecipeError for what is no rate."""
    if tflops is None:
        return DEFAULT_GPU_RATE
    if not 0 < tflops < math.inf:
        raise RecipeError(
            f"--gpu-rate {tflops:g}: expected TFLOP/s above 0, such as {DEFAULT_GPU_RATE:g}"
        )
    return tflops


def measured_rates(device: str = "cpu", dtype: torch.dtype = torch.float32) -> Rates:
    """Of this device, in about two seconds on a CPU."""
    generator = torch.Generator().manual_seed(0)
    side = _SIDE if device == "cpu" else _SIDE_ON_GPU
    square = torch.randn(side, side, generator=generator).to(device)
    weight, half, gram = square[: side // 2], square.to(dtype), square @ square.T
    gram.diagonal().add_(side)
    product, solve = 2.0 * side**3, ADMM(num_steps=12, num_ramp_steps=6, num_support_steps=4)
    solver, choice = solve.prepare(weight, gram), Choice(weight.numel(), weight.numel() // 2)

    def factor() -> Tensor:
        return torch.cholesky_inverse(torch.linalg.cholesky(gram))

    return Rates(
        product / _fastest(lambda: half @ half, _NUM_PRODUCTS),
        product / _fastest(lambda: square @ square, _NUM_PRODUCTS),
        solve.num_products * product / 2 / _fastest(lambda: solver(choice).weight),
        side**3 / _fastest(factor),
    )


def _fastest(run: Callable[[], Tensor], num_runs: int = 2) -> float:
    """Seconds of the fastest of some runs."""
    seconds = []
    for _ in range(num_runs):
        begin = time.perf_counter()
        run().flatten()[0].item()  # so that a GPU has done it
        seconds.append(time.perf_counter() - begin)
    return min(seconds)
