"""The relative error of predicted noise, row by row: with an interval, and along the way.

A row is one latent in one denoiser call. Guidance predicts a latent twice, with the condition and
without; those rows go together, as one item of the sample.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ditprune.evaluation.metrics.interval import Estimate, bootstrap

NUM_PARTS = 10


@dataclass(frozen=True)
class Row:
    """Args:
    difference, dense: ‖ε_pruned − ε_dense‖² and ‖ε_dense‖².
    place: how far from noise (0) to image (1); None where that is not known.
    timestep: as the denoiser got it; None where it gets none.
    latent: tells which rows are predictions for the same latent.
    """

    difference: float
    dense: float
    place: float | None
    timestep: float | None
    latent: str


def update(
    rows: tuple[Row, ...], pruned: Float[Tensor, "n ..."], dense: Float[Tensor, "n ..."],
    place: float | None, timesteps: Sequence[float | None], latents: Sequence[str],
) -> tuple[Row, ...]:  # fmt: skip
    """Add the rows of one call."""
    differences = (pruned.double() - dense.double()).square().flatten(1).sum(1).tolist()
    norms = dense.double().square().flatten(1).sum(1).tolist()
    more = zip(differences, norms, timesteps, latents, strict=True)
    return rows + tuple(Row(d, norm, place, step, latent) for d, norm, step, latent in more)


def compute(rows: Sequence[Row], seed: int = 0) -> Estimate:
    """mean‖ε_pruned − ε_dense‖² / mean‖ε_dense‖², and its interval over latents.

    The order of rows does not matter.
    """
    difference, dense = _of_latents(rows)
    return bootstrap(
        (difference.sum() / dense.sum()).item(),
        lambda weights: ((weights @ difference) / (weights @ dense)).item(),
        len(dense), seed, is_mean=True,
    )  # fmt: skip


def shares(rows: Sequence[Row]) -> tuple[float, ...]:
    """What each latent adds, scaled so that the mean is the relative error; in an order that is
    the same for all models, so that latents of two can be compared. NaN or Inf where predictions
    are not finite.
    """
    difference, dense = _of_latents(rows)
    return tuple((difference / dense.mean()).tolist())


def _of_latents(rows: Sequence[Row]) -> Float[Tensor, "2 n"]:
    """‖ε_pruned − ε_dense‖² and ‖ε_dense‖² of each latent, in the order of their names."""
    sums: dict[str, tuple[float, float]] = {}
    for row in sorted(rows, key=lambda row: (row.latent, row.dense, row.difference)):
        difference, dense = sums.get(row.latent, (0.0, 0.0))
        sums[row.latent] = difference + row.difference, dense + row.dense
    return torch.tensor(list(sums.values()), dtype=torch.float64).T


def by_timestep(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The error in each tenth of the way that has rows, from noise to image.

    The order of rows does not matter. `place` is the middle of the tenth, `timestep` the mean
    over its rows; None where the denoiser gets none. `error` is None where it is no number, as of
    predictions that are not finite.
    """
    parts: dict[int, list[Row]] = {}
    for row in sorted(rows, key=lambda row: (row.dense, row.difference)):
        if row.place is not None:
            parts.setdefault(min(int(row.place * NUM_PARTS), NUM_PARTS - 1), []).append(row)
    return [
        {
            "timestep": _mean([row.timestep for row in own]),
            "place": (part + 0.5) / NUM_PARTS,
            "error": _ratio(sum(row.difference for row in own), sum(row.dense for row in own)),
            "num_rows": len(own),
        }
        for part, own in sorted(parts.items())
    ]


def _ratio(difference: float, dense: float) -> float | None:
    ratio = difference / (dense or math.nan)
    return ratio if math.isfinite(ratio) else None


def _mean(values: Sequence[float | None]) -> float | None:
    known = sorted(value for value in values if value is not None)
    return sum(known) / len(known) if known else None
