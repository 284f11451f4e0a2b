"""Gradient steps on the kept weights alone, towards the dense denoiser's own predictions.

No data but the calibration calls: their noisy inputs, and mixtures of two of one timestep, are
given to the dense denoiser and to the pruned one, whose outputs and blocks' outputs are compared.
Biases, norms and everything outside the targets stay as they are, bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ditprune.calibration.capture import moment_of
from ditprune.calibration.replay import evaluating, predicted_noise
from ditprune.calibration.rows import merge_calls, num_rows, take_item
from ditprune.calls import Call
from ditprune.metrics import relative_error
from ditprune.progress import Report
from ditprune.refinement import Distill

_WARM_UP = 0.05
_BETAS = (0.9, 0.99)
_RATE_OF_ERROR = 6e-3
_ASIDE = 16
_JUDGED_TOGETHER = 32


def refine_(
    denoiser: nn.Module, dense: nn.Module, keep: Mapping[str, Tensor], blocks: Sequence[str],
    calls: Sequence[Call], settings: Distill, report: Report,
) -> None:  # fmt: skip
    """Train the kept weights of the targets in place; the mask's zeros stay zero.

    Adam with a short warm-up and a cosine to zero; each step sees `batch_size` rows, all rows once
    before any comes again. One row in sixteen is kept aside: where the error on those does not
    fall, the weights stay what they were.

    Args:
        dense: the denoiser as it was; the teacher.
        keep: by target, True where a weight is kept, [C_out, C_in].
        blocks: paths of the modules whose outputs are compared too.
    """
    rows = [take_item(call, row, num_rows(call)) for call in calls for row in range(num_rows(call))]
    rows, aside = _split(rows, settings.seed)
    before = _error(denoiser, dense, aside or rows)
    rate = settings.learning_rate or _RATE_OF_ERROR * math.sqrt(before)
    weights: list[Tensor] = [denoiser.get_parameter(f"{name}.weight") for name in keep]
    masks = [mask.view(w.shape).to(w) for mask, w in zip(keep.values(), weights, strict=True)]
    draws = _draws(denoiser, rows, settings)
    start = [weight.detach().clone() for weight in weights]
    with training(denoiser, weights), evaluating(dense):
        optimizer = torch.optim.Adam(weights, lr=rate, betas=_BETAS, foreach=True)
        for step in range(settings.num_steps):
            for group in optimizer.param_groups:
                group["lr"] = rate * _rate(step, settings.num_steps)
            optimizer.zero_grad()
            batch = next(draws)
            for call in merge_calls(batch):
                share = num_rows(call) / len(batch)
                _backward(denoiser, dense, blocks, call, settings.block_weight, share)
            optimizer.step()
            with torch.no_grad():
                for weight, mask in zip(weights, masks, strict=True):
                    weight.mul_(mask)
            report("refining", step + 1, settings.num_steps)
    if aside and _error(denoiser, dense, aside) >= before:
        with torch.no_grad():
            for weight, old in zip(weights, start, strict=True):
                weight.copy_(old)


def _split(rows: list[Call], seed: int) -> tuple[list[Call], list[Call]]:
    """Rows to train on, and rows to judge by."""
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed)).tolist()
    count = len(rows) // _ASIDE
    return [rows[i] for i in sorted(order[count:])], [rows[i] for i in sorted(order[:count])]


@torch.no_grad()
def _error(denoiser: nn.Module, dense: nn.Module, rows: Sequence[Call]) -> float:
    """The relative error of the denoiser's predictions over these rows."""
    state = relative_error.RelativeError()
    with evaluating(denoiser), evaluating(dense):
        for first in range(0, len(rows), _JUDGED_TOGETHER):
            for call in merge_calls(rows[first : first + _JUDGED_TOGETHER]):
                own, expected = _predict(denoiser, call), _predict(dense, call)
                state = relative_error.update(state, own, expected)
    return relative_error.compute(state)


def _backward(
    denoiser: nn.Module, dense: nn.Module, blocks: Sequence[str], call: Call,
    block_weight: float, share: float,
) -> None:  # fmt: skip
    """Gradients of the relative errors of one call."""
    compared = blocks if block_weight else ()
    with torch.no_grad(), _outputs_of(dense, compared) as expected:
        target = _predict(dense, call)
    with torch.enable_grad(), _outputs_of(denoiser, compared) as got:
        loss = _relative(_predict(denoiser, call), target)
        pairs = [(a, b) for n in compared for a, b in zip(got[n], expected[n], strict=True)]
        if pairs:
            loss = loss + block_weight * sum(_relative(a, b) for a, b in pairs) / len(pairs)
        (loss * share).backward()


def _relative(own: Tensor, reference: Tensor) -> Tensor:
    """‖own − reference‖² / ‖reference‖²."""
    scale = reference.square().mean().clamp_min(torch.finfo(reference.dtype).tiny)
    return (own - reference).square().mean() / scale


def _predict(denoiser: nn.Module, call: Call) -> Tensor:
    return predicted_noise(denoiser(*call.args, **call.kwargs), call.sample().shape[1])


@contextmanager
def _outputs_of(denoiser: nn.Module, names: Sequence[str]) -> Iterator[dict[str, list[Tensor]]]:
    """What these modules give back while the block runs: floating tensors, in order."""
    found: dict[str, list[Tensor]] = {name: [] for name in names}

    def watch(name: str) -> Any:
        def hook(_module: nn.Module, _args: Any, output: Any) -> None:
            items = output if isinstance(output, (tuple, list)) else [output]
            found[name] += [
                one for one in items if isinstance(one, Tensor) and one.is_floating_point()
            ]

        return hook

    handles = [denoiser.get_submodule(name).register_forward_hook(watch(name)) for name in names]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def training(denoiser: nn.Module, weights: Sequence[Tensor]) -> Iterator[None]:
    """Gradients for these weights and no others; eval mode; all as it was afterwards."""
    asked = [(parameter, parameter.requires_grad) for parameter in denoiser.parameters()]
    try:
        for parameter, _ in asked:
            parameter.requires_grad_(False)
        for weight in weights:
            weight.requires_grad_(True)
        with evaluating(denoiser):
            yield
    finally:
        for parameter, requires_grad in asked:
            parameter.requires_grad_(requires_grad)
            parameter.grad = None


def _rate(step: int, num_steps: int) -> float:
    warm = max(1, int(_WARM_UP * num_steps))
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, num_steps - warm)))


def _draws(denoiser: nn.Module, rows: Sequence[Call], settings: Distill) -> Iterator[list[Call]]:
    """Batches of rows without end, each row turned towards another of its timestep."""
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
