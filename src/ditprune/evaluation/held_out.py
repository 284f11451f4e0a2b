"""How far apart are predictions on denoiser calls that no calibration has seen?"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ditprune.calibration.sample import sample_unit
from ditprune.calibration.workers import Worker
from ditprune.calls import DENOISER, Call
from ditprune.denoiser.capture import moment_of
from ditprune.denoiser.pipeline import load_denoiser
from ditprune.denoiser.placement import Placement
from ditprune.denoiser.replay import predicted_noise, run_call
from ditprune.denoiser.rows import num_rows, take_item, to_placement
from ditprune.evaluation.in_memory import AnyModel
from ditprune.evaluation.metrics.error_rows import ErrorRow, error_rows_of
from ditprune.evaluation.protocol import Protocol
from ditprune.progress import Progress, silent

_CPU = Placement()


@dataclass(frozen=True)
class HeldOut:
    """The held-out calls of one worker.

    Args:
        calls: by denoiser.
        rows_per_step: rows of all calls of one image at one step, 2 with guidance.
        num_steps: denoising steps of a run. Both are 0 if this worker ran none.
    """

    calls: Mapping[str, list[Call]]
    rows_per_step: int
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
    rows_per_step = num_steps = 0
    for number, unit in enumerate(units, start=1):
        sampled, style = sample_unit(pipeline, sampling, unit, names)
        rows_per_step = style.rows_per_image * style.calls_per_step
        num_steps = style.num_steps
        for call in sampled:
            calls.setdefault(call.denoiser, []).append(call)
        progress("held-out calls", number, len(units))
    return HeldOut(calls, rows_per_step, num_steps)


def predictions(
    denoiser: nn.Module, calls: Sequence[Call], placement: Placement = _CPU
) -> list[Tensor]:
    """The predicted noise of every call, on the CPU."""
    moved = (to_placement(call, placement.device, placement.dtype) for call in calls)
    return [
        predicted_noise(run_call(denoiser, call), call.sample().shape[1]).cpu() for call in moved
    ]


def rows_between(
    denoiser: nn.Module, calls: Sequence[Call], pruned: Sequence[Tensor], dense: Sequence[Tensor]
) -> tuple[ErrorRow, ...]:
    """How far apart two models' predictions for the same calls are, row by row."""
    rows: tuple[ErrorRow, ...] = ()
    for call, noise, dense_noise in zip(calls, pruned, dense, strict=True):
        count = num_rows(call)
        items = [take_item(call, row, count) for row in range(count)]
        if len(items) != len(noise):  # the denoiser's output has no row for each latent
            noise, dense_noise, items = noise[None], dense_noise[None], [call]
        moments = [moment_of(denoiser, item) for item in items]
        timesteps = [None if moment is None else moment[1] for moment in moments]
        latents = [_latent_name(item) for item in items]
        rows += error_rows_of(noise, dense_noise, call.place, timesteps, latents)
    return rows


def _latent_name(call: Call) -> str:
    """A name for a latent and its position in denoising, the same for every condition."""
    latent = call.sample().contiguous().cpu().view(torch.uint8).numpy().tobytes()
    return hashlib.sha256(latent + repr(call.place).encode()).hexdigest()


def exchange_denoisers(
    pipeline: Any, pruned: AnyModel, calls: Mapping[str, Sequence[Call]],
    noise: Mapping[str, Sequence[Tensor]], placement: Placement,
) -> tuple[ErrorRow, ...]:  # fmt: skip
    """Put a pruned model's denoisers into the pipeline, and compare their predictions.

    Args:
        calls: held-out calls by denoiser.
        noise: what the dense denoisers predict for them.
    """
    rows: tuple[ErrorRow, ...] = ()
    for name, source in pruned.denoisers.items():
        setattr(pipeline, name, None)  # one loaded model in memory at a time
        denoiser = source if isinstance(source, nn.Module) else load_denoiser(source, placement)
        setattr(pipeline, name, denoiser)
        held_out = calls.get(name, ())
        pruned_noise = predictions(denoiser, held_out, placement)
        rows += rows_between(denoiser, held_out, pruned_noise, noise[name])
    return rows
