"""The denoiser calls that no calibration has seen, and how far predictions lie apart on them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ditprune.calibration.sample import sample_unit
from ditprune.calibration.workers import Worker
from ditprune.calls import DENOISER, Call
from ditprune.checkpoints.locate import ModelFolder
from ditprune.denoiser.capture import Style, moment_of
from ditprune.denoiser.pipeline import load_denoiser
from ditprune.denoiser.placement import Placement
from ditprune.denoiser.replay import predicted_noise, relative_error, run_call
from ditprune.denoiser.rows import num_rows, take_item, to_placement
from ditprune.evaluation.measure import Measured
from ditprune.evaluation.metrics import error_rows
from ditprune.evaluation.metrics.error_rows import Row
from ditprune.evaluation.protocol import Protocol
from ditprune.evaluation.tools import Tools
from ditprune.progress import Progress, silent


@dataclass(frozen=True)
class HeldOut:
    """One worker's calls.

    Args:
        calls: by denoiser.
        styles: how the pipeline makes them, for each sampling run.
        num_steps: denoising steps of a run; 0 where this worker ran none.
    """

    calls: Mapping[str, list[Call]]
    styles: tuple[Style, ...]
    num_steps: int


def sample_held_out(
    pipeline: Any,
    protocol: Protocol,
    progress: Progress = silent,
    names: Sequence[str] = (DENOISER,),
    worker: Worker | None = None,
) -> HeldOut:
    """Run the pipeline for this worker's calls, from seeds that no calibration uses."""
    worker, sampling = worker or Worker(), protocol.held_out()
    units = [unit for unit in range(sampling.num_units) if worker.owns(unit)]
    calls: dict[str, list[Call]] = {}
    styles = []
    for number, unit in enumerate(units, start=1):
        found, style = sample_unit(pipeline, sampling, unit, names)
        styles.append(style)
        for call in found:
            calls.setdefault(call.denoiser, []).append(call)
        progress("held-out calls", number, len(units))
    num_steps = len(torch.unique_consecutive(pipeline.scheduler.timesteps)) if units else 0
    return HeldOut(calls, tuple(styles), num_steps)


def predictions(
    denoiser: nn.Module, calls: Sequence[Call], place: Placement | None = None
) -> list[Tensor]:
    """The predicted noise of every call, on the CPU."""
    place = place or Placement()
    moved = (to_placement(call, place.device, place.dtype) for call in calls)
    return [
        predicted_noise(run_call(denoiser, call), call.sample().shape[1]).cpu() for call in moved
    ]


def relative_error_between(pruned: Sequence[Tensor], dense: Sequence[Tensor]) -> float:
    """The relative error over all calls together."""
    return relative_error(zip(pruned, dense, strict=True))


def rows_between(
    denoiser: nn.Module, calls: Sequence[Call], pruned: Sequence[Tensor], dense: Sequence[Tensor]
) -> tuple[Row, ...]:
    """How far apart two models' predictions for the same calls lie, row by row."""
    rows: tuple[Row, ...] = ()
    for call, own, reference in zip(calls, pruned, dense, strict=True):
        count = num_rows(call)
        items = [take_item(call, row, count) for row in range(count)]
        if len(items) != len(own):  # a denoiser whose output has no row for each latent
            own, reference, items = own[None], reference[None], [call]
        times = [timestep_of(denoiser, item) for item in items]
        latents = [_name_of(item) for item in items]
        rows = error_rows.update(rows, own, reference, call.place, times, latents)
    return rows


def timestep_of(denoiser: nn.Module, call: Call) -> float | None:
    """The largest timestep of a call; None where it has none."""
    moment = moment_of(denoiser, call)
    return None if moment is None else moment[1]


def _name_of(call: Call) -> str:
    """The same for the same latent at the same place, whichever condition it is predicted for."""
    latent = call.sample().contiguous().cpu().view(torch.uint8).numpy().tobytes()
    return hashlib.sha256(latent + repr(call.place).encode()).hexdigest()


def exchange(
    pipeline: Any, pruned: ModelFolder, calls: Mapping[str, Sequence[Call]],
    noise: Mapping[str, Sequence[Tensor]], place: Placement,
) -> tuple[Row, ...]:  # fmt: skip
    """Put a pruned model's denoisers into the pipeline; how far their predictions are off.

    Args:
        calls, noise: held-out calls and what the dense denoisers predict, by denoiser.
    """
    rows: tuple[Row, ...] = ()
    for name, folder in pruned.denoisers.items():
        setattr(pipeline, name, None)  # one model in memory at a time
        denoiser = load_denoiser(folder, place)
        setattr(pipeline, name, denoiser)
        own = calls.get(name, ())
        rows += rows_between(denoiser, own, predictions(denoiser, own, place), noise[name])
    return rows


def with_error(found: Measured, rows: Sequence[Row], tools: Tools, seed: int) -> Measured:
    """The relative error of these rows beside a model's other numbers, where it is asked for."""
    if not rows or not tools.has("relative_error"):
        return found
    return replace(
        found,
        estimates={"relative_error": error_rows.compute(rows, seed), **found.estimates},
        values={**found.values, "relative_error": error_rows.shares(rows)},
    )
