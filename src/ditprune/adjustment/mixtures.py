"""Batches of calibration rows without end, each turned towards another of its timestep.

The dense denoiser says what is right for a mixture, so a few hundred inputs become many.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

from ditprune.calibration.capture import moment_of
from ditprune.calls import Call
from ditprune.refinement import Distill


def draws(denoiser: nn.Module, rows: Sequence[Call], settings: Distill) -> Iterator[list[Call]]:
    """Batches of `batch_size` rows, all rows once before any comes again."""
    generator = torch.Generator().manual_seed(settings.seed)
    of_moment: dict[Any, list[int]] = {}
    moments = [(moment_of(denoiser, row), row.sample().shape) for row in rows]
    for number, moment in enumerate(moments):
        of_moment.setdefault(moment, []).append(number)
    size = min(settings.batch_size, len(rows))
    while True:
        order = torch.randperm(len(rows), generator=generator).tolist()
        for first in range(0, len(rows) - size + 1, size):
            batch = []
            for number in order[first : first + size]:
                likes = of_moment[moments[number]]
                other = likes[int(torch.randint(len(likes), (), generator=generator))]
                angle = settings.mixing * float(torch.rand((), generator=generator))
                batch.append(_turned(rows[number], rows[other], angle))
            yield batch


def _turned(row: Call, other: Call, angle: float) -> Call:
    """The row with its noisy input turned towards another's: the variance stays what it was."""
    if not angle or row is other:
        return row
    own = row.sample()
    mixture = math.cos(angle) * own + math.sin(angle) * other.sample()
    return row.map(lambda leaf: mixture if leaf is own else leaf)
