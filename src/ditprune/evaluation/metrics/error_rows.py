"""How large is the relative error of the predicted noise, with its interval and by timestep?

A row is one latent in one denoiser call. Guidance predicts each latent twice, with the condition
and without; those rows count as one item of the sample.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ditprune.evaluation.metrics.interval import Interval, bootstrap

_NUM_PARTS = 10


@dataclass(frozen=True)
class ErrorRow:
    """The error of one latent in one denoiser call.

    Args:
        difference, dense: ‖ε_pruned − ε_dense‖² and ‖ε_dense‖².
        progress_t: position from noise (0) to image (1); None if it is not known.
        timestep: as the denoiser gets it; None if it gets none.
        latent: rows with the same name are predictions for the same latent.
    """

    difference: float
    dense: float
    progress_t: float | None
    timestep: float | None
    latent: str


def error_rows_of(
    pruned: Float[Tensor, "n ..."], dense: Float[Tensor, "n ..."], progress_t: float | None,
    timesteps: Sequence[float | None], latents: Sequence[str],
) -> tuple[ErrorRow, ...]:  # fmt: skip
    """The rows of one call, from what both models predict."""
    differences = (pruned.double() - dense.double()).square().flatten(1).sum(1).tolist()
    norms = dense.double().square().flatten(1).sum(1).tolist()
    rows = zip(differences, norms, timesteps, latents, strict=True)
    return tuple(ErrorRow(d, norm, progress_t, step, latent) for d, norm, step, latent in rows)


def error_interval(rows: Sequence[ErrorRow], seed: int = 0) -> Interval:
    """mean‖ε_pruned − ε_dense‖² / mean‖ε_dense‖², with an interval over latents.

    The order of rows does not matter.
    """
    difference, dense = _of_latents(rows)
    return bootstrap(
        (difference.sum() / dense.sum()).item(),
        lambda weights: ((weights @ difference) / (weights @ dense)).item(),
        len(dense), seed, is_mean=True,
    )  # fmt: skip


def latent_errors(rows: Sequence[ErrorRow]) -> tuple[float, ...]:
    """The part of each latent, scaled so that the mean over latents is the relative error.

    The order of latents is the same for all models, so that two can be compared item by item. NaN
    or Inf if predictions are not finite.
    """
    difference, dense = _of_latents(rows)
    return tuple((difference / dense.mean()).tolist())


def _of_latents(rows: Sequence[ErrorRow]) -> Float[Tensor, "2 n"]:
    """‖ε_pruned − ε_dense‖² and ‖ε_dense‖² of each latent, in the order of their names."""
    sums: dict[str, tuple[float, float]] = {}
    for row in sorted(rows, key=lambda row: (row.latent, row.dense, row.difference)):
        difference, dense = sums.get(row.latent, (0.0, 0.0))
        sums[row.latent] = difference + row.difference, dense + row.dense
    return torch.tensor(list(sums.values()), dtype=torch.float64).T


def error_by_timestep(rows: Sequence[ErrorRow]) -> list[dict[str, Any]]:
    """The error in each tenth of the way from noise to image that has rows.

    The order of rows does not matter.

    Returns:
        For each tenth its middle (`place`), the mean `timestep` (None if the denoiser gets none),
        the `error` (None if it is not finite) and `num_rows`.
    """
    parts: dict[int, list[ErrorRow]] = {}
    for row in sorted(rows, key=lambda row: (row.dense, row.difference)):
        if row.progress_t is not None:
            parts.setdefault(min(int(row.progress_t * _NUM_PARTS), _NUM_PARTS - 1), []).append(row)
    return [
        {
            "timestep": _mean([row.timestep for row in part]),
            "place": (number + 0.5) / _NUM_PARTS,
            "error": _ratio(sum(row.difference for row in part), sum(row.dense for row in part)),
            "num_rows": len(part),
        }
        for number, part in sorted(parts.items())
    ]


def _ratio(difference: float, dense: float) -> float | None:
    ratio = difference / (dense or math.nan)
    return ratio if math.isfinite(ratio) else None


def _mean(values: Sequence[float | None]) -> float | None:
    known = sorted(value for value in values if value is not None)
    return sum(known) / len(known) if known else None
