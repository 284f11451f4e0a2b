"""Gradient steps on all kept weights together, towards the dense denoiser's predictions."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ditprune.calls import Call
from ditprune.denoiser.capture import moment_of
from ditprune.denoiser.replay import evaluating, predicted_noise, relative_error
from ditprune.denoiser.rows import merge_calls, num_rows, take_item
from ditprune.method.distill import Distill
from ditprune.progress import Progress
from ditprune.pruning.update.thinning import Thinning
from ditprune.targets.matrix import as_matrix


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
    sample = row.sample()
    mixture = math.cos(angle) * sample + math.sin(angle) * other.sample()
    return row.map(lambda leaf: mixture if leaf is sample else leaf)


_WARM_UP = 0.05
_BETAS = (0.9, 0.99)
_RATE_OF_ERROR = 8e-3
_ASIDE = 16
_JUDGED_TOGETHER = 32


class Refinement:
    """Training towards the dense denoiser on some rows of the calls, and judging on the others.

    One row in sixteen is kept aside to judge by.

    Args:
        denoiser: trained in place.
        dense: the denoiser as it was; the teacher.
        blocks: paths of the modules whose outputs are compared too.
    """

    def __init__(
        self, denoiser: nn.Module, dense: nn.Module, blocks: Sequence[str],
        calls: Sequence[Call], settings: Distill,
    ) -> None:  # fmt: skip
        self._denoiser, self._dense = denoiser, dense
        self._blocks, self._settings = blocks, settings
        rows = [
            take_item(call, row, num_rows(call)) for call in calls for row in range(num_rows(call))
        ]
        self._rows, aside = _split(rows, settings.seed)
        self._aside = aside or self._rows

    def error(self) -> float:
        """The relative error of the denoiser's predictions on the rows kept aside."""
        return _error(self._denoiser, self._dense, self._aside)

    def train_(
        self, keep: Mapping[str, Tensor], rate: float, thinning: Thinning | None, progress: Progress
    ) -> dict[str, Tensor]:
        """Train the kept weights of the targets in place; the mask's zeros stay zero.

        Adam with a short warm-up and a cosine to zero.

        Args:
            keep: by target, True where a weight is kept, [C_out, C_in].
            rate: the largest learning rate.
            thinning: what else is removed on the way.

        Returns:
            The masks at the end.
        """
        settings, keep = self._settings, dict(keep)
        weights = {name: self._denoiser.get_parameter(f"{name}.weight") for name in keep}
        batches = draws(self._denoiser, self._rows, settings)
        with training(self._denoiser, list(weights.values())), evaluating(self._dense):
            optimizer = torch.optim.Adam(weights.values(), lr=rate, betas=_BETAS, foreach=True)
            for step in range(settings.num_steps):
                for group in optimizer.param_groups:
                    group["lr"] = rate * _rate(step, settings.num_steps)
                if thinning and thinning.is_due(step, settings.num_steps):
                    scores = _scores(weights, optimizer)
                    keep = thinning.masks(keep, scores, step, settings.num_steps)
                optimizer.zero_grad()
                self._backward(next(batches))
                optimizer.step()
                _mask_(weights, keep)
                progress("refining", step + 1, settings.num_steps)
        return keep

    def _backward(self, batch: Sequence[Call]) -> None:
        """Gradients of the relative errors of a batch."""
        for call in merge_calls(batch):
            share = num_rows(call) / len(batch)
            weight = self._settings.block_weight
            _backward(self._denoiser, self._dense, self._blocks, call, weight, share)


def rate_for(error: float, settings: Distill) -> float:
    """The largest learning rate that suits this error, or the one that was asked for."""
    return settings.learning_rate or _RATE_OF_ERROR * math.sqrt(error)


@torch.no_grad()
def _mask_(weights: Mapping[str, Tensor], keep: Mapping[str, Tensor]) -> None:
    for name, weight in weights.items():
        weight.mul_(keep[name].view(weight.shape))


@torch.no_grad()
def _scores(weights: Mapping[str, Tensor], optimizer: torch.optim.Adam) -> dict[str, Tensor]:
    """W² √v of every weight, as matrices."""
    return {
        name: as_matrix(weight.square() * optimizer.state[weight]["exp_avg_sq"].sqrt()).float()
        for name, weight in weights.items()
    }


def _split(rows: list[Call], seed: int) -> tuple[list[Call], list[Call]]:
    """Rows to train on, and rows to judge by."""
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed)).tolist()
    count = len(rows) // _ASIDE
    return [rows[i] for i in sorted(order[count:])], [rows[i] for i in sorted(order[:count])]


@torch.no_grad()
def _error(denoiser: nn.Module, dense: nn.Module, rows: Sequence[Call]) -> float:
    """The relative error of the denoiser's predictions over these rows."""
    with evaluating(denoiser), evaluating(dense):
        return relative_error(
            (_predict(denoiser, call), _predict(dense, call))
            for first in range(0, len(rows), _JUDGED_TOGETHER)
            for call in merge_calls(rows[first : first + _JUDGED_TOGETHER])
        )


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


def _relative(output: Tensor, reference: Tensor) -> Tensor:
    """‖output − reference‖² / ‖reference‖²."""
    scale = reference.square().mean().clamp_min(torch.finfo(reference.dtype).tiny)
    return (output - reference).square().mean() / scale


def _predict(denoiser: nn.Module, call: Call) -> Tensor:
    return predicted_noise(denoiser(*call.args, **call.kwargs), call.sample().shape[1])


@contextmanager
def _outputs_of(denoiser: nn.Module, names: Sequence[str]) -> Iterator[dict[str, list[Tensor]]]:
    """What these modules give back while the block runs: floating tensors, in order."""
    outputs: dict[str, list[Tensor]] = {name: [] for name in names}

    def watch(name: str) -> Any:
        def hook(_module: nn.Module, _args: Any, output: Any) -> None:
            items = output if isinstance(output, (tuple, list)) else [output]
            outputs[name] += [
                item for item in items if isinstance(item, Tensor) and item.is_floating_point()
            ]

        return hook

    handles = [denoiser.get_submodule(name).register_forward_hook(watch(name)) for name in names]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def training(denoiser: nn.Module, weights: Sequence[Tensor]) -> Iterator[None]:
    """Gradients for these weights and no others; eval mode; all as it was afterwards."""
    before = [(p, p.requires_grad, p.grad) for p in denoiser.parameters()]
    try:
        for parameter, *_ in before:
            parameter.requires_grad_(False)
            parameter.grad = None
        for weight in weights:
            weight.requires_grad_(True)
        with evaluating(denoiser):
            yield
    finally:
        for parameter, requires_grad, gradient in before:
            parameter.requires_grad_(requires_grad)
            parameter.grad = gradient


def _rate(step: int, num_steps: int) -> float:
    warm = max(1, int(_WARM_UP * num_steps))
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, num_steps - warm)))
