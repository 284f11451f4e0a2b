"""Comparing magnitudes with a column's cut-off says what comparing scores says, of every weight."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor

from ditprune.method.magnitudes import Cutoffs
from ditprune.method.saliency.power import power_score
from ditprune.method.thresholds import Threshold

NUM_IN = 24
POWERS = [(1, 0), (2, 1), (0.5, 2), (1.3, 0.7), (0, 1), (16, 1)]
KINDS = ["normal", "ties", "zeros", "subnormal", "extreme"]


def weights(kind: str, dtype: torch.dtype) -> Tensor:
    """[17, NUM_IN], without Inf."""
    draw, limits = torch.Generator().manual_seed(0), torch.finfo(dtype)
    weight = torch.randn(17, NUM_IN, generator=draw, dtype=torch.float64)
    if kind == "ties":
        weight = (weight * 2).round() / 2
    elif kind == "zeros":
        weight = torch.where(weight.abs() < 1, weight.sign() * 0.0, weight)
    elif kind == "subnormal":
        weight = weight * limits.smallest_normal / 8
    elif kind == "extreme":
        ends = [limits.max, limits.smallest_normal, 0.0, -0.0, 1.0, -limits.max, limits.eps]
        picks = torch.randint(0, len(ends), weight.shape, generator=draw)
        weight = torch.tensor(ends, dtype=torch.float64)[picks]
    return weight.to(dtype)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_the_mask_is_that_of_the_scores(kind: str, dtype: torch.dtype) -> None:
    weight = weights(kind, dtype)
    norm = torch.rand(NUM_IN, generator=torch.Generator().manual_seed(1)) + 0.1
    norm[3], norm[4] = 0, 1e-30
    for weight_power, activation_power in POWERS:
        score = partial(
            power_score, norm_I=norm, weight_power=weight_power, activation_power=activation_power
        )
        scores = score(weight)
        if not scores.isfinite().all():  # float64 tells these apart
            continue
        for value in torch.cat([scores.flatten()[::139], torch.tensor([0, 1e-45, 1e30])]).numpy():
            cutoffs = Cutoffs.of(Threshold(value, 0), score, dtype, NUM_IN)
            for first_tie in (0, 5, 3 * NUM_IN + 7, weight.numel()):
                threshold = Threshold(value, first_tie)
                cutoffs = replace(cutoffs, first_tie=first_tie)
                for rows in (slice(0, 3), slice(3, 4), slice(4, 17)):
                    start = rows.start * NUM_IN
                    expected = threshold.keep(scores[rows], start)
                    assert torch.equal(cutoffs.keep(weight[rows], start), expected)


def test_a_cutoff_is_the_first_magnitude_that_reaches() -> None:
    norm = torch.tensor([1.0, 4.0, 0.0])
    score = partial(power_score, norm_I=norm, weight_power=1, activation_power=1)
    cutoffs = Cutoffs.of(Threshold(np.float32(2), 0), score, torch.bfloat16, 3)
    first = torch.tensor([2.0, 0.5, float("inf")], dtype=torch.bfloat16).view(torch.int16)
    assert cutoffs.reaching.tolist() == first.tolist()  # Inf: no weight does
    assert cutoffs.exceeding.tolist() == [int(first[0]) + 1, int(first[1]) + 1, int(first[2])]
