"""Gradient steps on the kept weights alone, towards the dense denoiser's own predictions.

No data but the calibration calls: the dense output of each is computed once and is the target.
Biases, norms and everything outside the targets stay as they are, bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ditprune.calibration.replay import evaluating, predicted_noise
from ditprune.calibration.rows import merge_calls, num_rows, take_item
from ditprune.calls import Call
from ditprune.errors import ModelError
from ditprune.progress import Report

_WARM_UP = 0.05
_BETAS = (0.9, 0.99)


@dataclass(frozen=True)
class Rows:
    """Calibration calls row by row, with the dense denoiser's prediction of each."""

    calls: tuple[Call, ...]
    predictions: tuple[Tensor, ...]


@torch.no_grad()
def rows_of(denoiser: nn.Module, calls: Sequence[Call]) -> Rows:
    """Every row of every call, and what the denoiser predicts for it now."""
    single: list[Call] = []
    predictions: list[Tensor] = []
    with evaluating(denoiser):
        for call in calls:
            output = predict(denoiser, call)
            count = num_rows(call)
            if len(output) != count:
                raise ModelError(
                    f"{type(denoiser).__name__}: {len(output)} predictions for {count} rows; "
                    "refinement needs one for each; reconstruct without it"
                )
            single += [take_item(call, row, count) for row in range(count)]
            predictions += list(output.split(1))
    return Rows(tuple(single), tuple(predictions))


def predict(denoiser: nn.Module, call: Call) -> Tensor:
    """The predicted noise, in the graph where gradients are recorded."""
    return predicted_noise(denoiser(*call.args, **call.kwargs), call.sample().shape[1])


def refine_(
    denoiser: nn.Module,
    keep: Mapping[str, Tensor],
    rows: Rows,
    num_steps: int,
    learning_rate: float,
    batch_size: int,
    seed: int,
    report: Report,
) -> None:
    """Train the kept weights of the targets in place; the mask's zeros stay zero.

    Adam with a short warm-up and a cosine to zero; each step sees `batch_size` rows, all rows once
    before any comes again.

    Args:
        keep: by target, True where a weight is kept, [C_out, C_in].
    """
    weights = [denoiser.get_parameter(f"{name}.weight") for name in keep]
    masks = [mask.view(w.shape).to(w) for mask, w in zip(keep.values(), weights, strict=True)]
    scale = 1 / (sum(p.square().mean().item() for p in rows.predictions) / len(rows.predictions))
    order = _epochs(len(rows.calls), batch_size, seed)
    asked = [(parameter, parameter.requires_grad) for parameter in denoiser.parameters()]
    try:
        for parameter, _ in asked:
            parameter.requires_grad_(False)
        for weight in weights:
            weight.requires_grad_(True)
        optimizer = torch.optim.Adam(weights, lr=learning_rate, betas=_BETAS, foreach=True)
        with evaluating(denoiser), torch.enable_grad():
            for step in range(num_steps):
                for group in optimizer.param_groups:
                    group["lr"] = learning_rate * _rate(step, num_steps)
                optimizer.zero_grad()
                _backward(denoiser, rows, next(order), scale)
                optimizer.step()
                with torch.no_grad():
                    torch._foreach_mul_(weights, masks)
                report("refining", step + 1, num_steps)
    finally:
        for parameter, requires_grad in asked:
            parameter.requires_grad_(requires_grad)
            parameter.grad = None


def _backward(denoiser: nn.Module, rows: Rows, batch: Sequence[int], scale: float) -> None:
    """Gradients of the mean square error over a batch; rows that cannot share a call go alone."""
    calls = merge_calls([rows.calls[i] for i in batch])
    expected = torch.cat([rows.predictions[i] for i in batch])
    at = 0
    for call in calls:
        output = predict(denoiser, call)
        share = expected[at : at + len(output)].to(output)
        at += len(output)
        weight = len(output) / len(expected)
        ((output - share).square().mean() * scale * weight).backward()


def _rate(step: int, num_steps: int) -> float:
    warm = max(1, int(_WARM_UP * num_steps))
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, num_steps - warm)))


def _epochs(count: int, batch_size: int, seed: int):  # type: ignore[no-untyped-def]
    """Batches of rows without end; every row once before any comes again."""
    generator = torch.Generator().manual_seed(seed)
    size = min(batch_size, count)
    while True:
        order = torch.randperm(count, generator=generator).tolist()
        for first in range(0, count - size + 1, size):
            yield order[first : first + size]


