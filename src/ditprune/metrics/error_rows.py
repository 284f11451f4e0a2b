"""The relative error of predicted noise, row by row: with an interval, and along the way.

A row is one latent in one denoiser call.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ditprune.metrics.estimate import Estimate, bootstrap

NUM_PARTS = 10


@dataclass(frozen=True)
class Row:
    """Args:
    difference, dense: ‖ε_pruned − ε_dense‖² and ‖ε_dense‖².
    place: how far from noise (0) to image (1); None where that is not known.
    timestep: as the denoiser got it; None where it gets none.
    """

    difference: float
    dense: float
    place: float | None
    timestep: float | None


def update(
    rows: tuple[Row, ...], pruned: Float[Tensor, "n ..."], dense: Float[Tensor, "n ..."],
    place: float | None, timesteps: Sequence[float | None],
) -> tuple[Row, ...]:  # fmt: skip
    """Add the rows of one call."""
    differences = (pruned.double() - dense.double()).square().flatten(1).sum(1).tolist()
    norms = dense.double().square().flatten(1).sum(1).tolist()
    more = zip(differences, norms, timesteps, strict=True)
    return rows + tuple(Row(difference, norm, place, step) for difference, norm, step in more)


def compute(rows: Sequence[Row], seed: int = 0) -> Estimate:
    """mean‖ε_pruned − ε_dense‖² / mean‖ε_dense‖², and its interval over rows.

    The order of rows does not matter.
    """
    ordered = sorted((row.dense, row.difference) for row in rows)
    dense, difference = torch.tensor(ordered, dtype=torch.float64).T
    return bootstrap(
        (difference.sum() / dense.sum()).item(),
        lambda weights: ((weights @ difference) / (weights @ dense)).item(),
        len(rows), seed, lowest=0.0,
    )  # fmt: skip


def shares(rows: Sequence[Row]) -> tuple[float, ...]:
    """What each row adds, scaled so that the mean is the relative error; in an order that is the
    same for all models, so that rows of two can be compared.
    """
    ordered = sorted(rows, key=lambda row: (row.dense, row.place or 0, row.timestep or 0))
    mean = sum(row.dense for row in ordered) / len(ordered)
    return tuple(row.difference / mean for row in ordered)


def by_timestep(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The error in each tenth of the way that has rows, from noise to image.

    The order of rows does not matter. `place` is the middle of the tenth, `timestep` the mean
    over its rows.
    """
    parts: dict[int, list[Row]] = {}
    for row in sorted(rows, key=lambda row: (row.dense, row.difference)):
        if row.place is not None:
            parts.setdefault(min(int(row.place * NUM_PARTS), NUM_PARTS - 1), []).append(row)
    return [
        {
            "timestep": _mean([row.timestep for row in own]),
            "place": (part + 0.5) / NUM_PARTS,
            "error": sum(row.difference for row in own) / sum(row.dense for row in own),
            "num_rows": len(own),
        }
        for part, own in sorted(parts.items())
    ]


def _mean(values: Sequence[float | None]) -> float | None:
    known = sorted(value for value in values if value is not None)
    return sum(known) / len(known) if known else None
