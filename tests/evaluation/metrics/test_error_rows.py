"""Relative error by rows: the whole, its parts along the way, in any order."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from ditprune.denoiser.replay import relative_error
from ditprune.evaluation.metrics.error_rows import (
    ErrorRow,
    error_by_timestep,
    error_interval,
    error_rows_of,
    latent_errors,
)


def noise(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def calls() -> tuple[ErrorRow, ...]:
    rows: tuple[ErrorRow, ...] = ()
    for i, progress_t in enumerate((0.02, 0.07, 0.55)):
        dense = noise(i, 4, 3, 2)
        pruned = dense + 0.1 * (i + 1) * noise(9 + i, 4, 3, 2)
        latents = [f"{i} {row}" for row in range(4)]
        rows += error_rows_of(pruned, dense, progress_t, [900.0 - i] * 4, latents)
    return rows


def test_the_whole_is_the_ratio_of_sums() -> None:
    denses = [noise(i, 4, 3, 2) for i in range(3)]
    pairs = [(d + 0.1 * (i + 1) * noise(9 + i, 4, 3, 2), d) for i, d in enumerate(denses)]
    found = error_interval(calls())
    assert found.value == pytest.approx(relative_error(pairs), rel=1e-6)
    assert found.low is not None
    assert found.high is not None
    assert 0 < found.low < found.value < found.high


def test_the_order_of_rows_does_not_matter() -> None:
    rows = calls()
    assert error_interval(rows) == error_interval(rows[::-1])
    assert error_by_timestep(rows) == error_by_timestep(rows[::-1])


def test_parts_are_tenths_of_the_way() -> None:
    rows = calls()
    first, second = error_by_timestep(rows)
    assert (first["num_rows"], first["place"], first["timestep"]) == (8, 0.05, 899.5)
    assert (second["num_rows"], second["place"], second["timestep"]) == (4, 0.55, 898.0)
    own = [row for row in rows if row.progress_t == 0.55]
    assert second["error"] == pytest.approx(
        sum(r.difference for r in own) / sum(r.dense for r in own)
    )


def test_what_is_not_known_has_no_part() -> None:
    assert error_by_timestep([ErrorRow(1.0, 2.0, None, None, "")]) == []
    (part,) = error_by_timestep([ErrorRow(1.0, 2.0, 1.0, None, "")])
    assert part == {"timestep": None, "place": 0.95, "error": 0.5, "num_rows": 1}


def test_shares_have_the_error_as_their_mean_in_one_order() -> None:
    rows = calls()
    assert sum(latent_errors(rows)) / len(rows) == pytest.approx(
        error_interval(rows).value, rel=1e-12
    )
    assert latent_errors(rows) == latent_errors(rows[::-1])
    worse = tuple(replace(row, difference=2 * row.difference) for row in rows[::-1])
    assert latent_errors(worse) == pytest.approx([2 * error for error in latent_errors(rows)])


def test_rows_of_one_latent_are_one_item() -> None:
    """With and without the condition: what is drawn again are latents, not their rows."""
    rows = calls()
    twice = rows + tuple(replace(row, progress_t=0.9) for row in rows[::-1])
    assert error_interval(twice) == error_interval(rows)
    assert latent_errors(twice) == pytest.approx(latent_errors(rows))


@pytest.mark.parametrize("spoiled", [math.nan, math.inf])
def test_what_is_not_finite_is_no_number(spoiled: float) -> None:
    rows = (*calls(), ErrorRow(spoiled, 2.0, 0.55, 898.0, "9 9"))
    first, second = error_by_timestep(rows)
    assert first["error"] == error_by_timestep(calls())[0]["error"]
    assert (second["error"], second["num_rows"]) == (None, 5)
    assert not math.isfinite(error_interval(rows).value)
    assert not all(math.isfinite(error) for error in latent_errors(rows))


def test_a_dense_prediction_of_zeros_is_no_division_by_zero() -> None:
    rows = [ErrorRow(1.0, 0.0, 0.55, 898.0, name) for name in "ab"]
    assert error_by_timestep(rows)[0]["error"] is None
    assert not math.isfinite(latent_errors(rows)[0])
    assert not math.isfinite(error_interval(rows).value)
