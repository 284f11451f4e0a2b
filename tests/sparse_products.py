"""Random sparse products, and what they have to be."""

from __future__ import annotations

import torch
from torch import Tensor

from ditprune.runtime import build

# Half a unit in the last place of the outputs; sums are float32 in all cases.
ROUNDING = {torch.float32: 2**-24, torch.bfloat16: 2**-8}

ALL = list(build.INSTRUCTION_SETS)  # the widest first
SETS = ALL[ALL.index(build.instruction_set()) :]  # what this machine has


def draw(num_tokens: int, num_rows: int, num_columns: int, sparsity: float, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    keep = torch.rand(num_rows, num_columns, generator=generator) >= sparsity
    weight = torch.randn(num_rows, num_columns, generator=generator) * keep
    inputs = torch.randn(num_tokens, num_columns, generator=generator)
    return inputs, weight, torch.randn(num_rows, generator=generator)


def assert_is_dense(outputs: Tensor, inputs: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    """Within 1e-5 of what is summed, entry by entry, and the rounding of the result."""
    inputs_64, weight_64 = inputs.double(), weight.double()
    bias_64 = torch.zeros(len(weight)).double() if bias is None else bias.double()
    expected = inputs_64 @ weight_64.T + bias_64
    summed = inputs_64.abs() @ weight_64.abs().T + bias_64.abs()
    assert outputs.dtype == inputs.dtype
    assert outputs.shape == expected.shape
    error = (outputs.double() - expected).abs()
    assert (error <= ROUNDING[inputs.dtype] * expected.abs() + 1e-5 * summed).all()
