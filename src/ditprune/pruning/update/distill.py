"""Gradient steps on all kept weights together, towards the dense denoiser's predictions."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ditprune.calls import Call
from ditprune.denoiser.capture import moment_of
from ditprune.denoiser.layout import RowLayout
from ditprune.method.distill import Distill
from ditprune.progress import Progress
from ditprune.pruning.update.gradients import (
    distance,
    outputs_of,
    prediction_of,
    relative,
    training,
)
from ditprune.pruning.update.judge import Judge
from ditprune.pruning.update.swap import exchanged
from ditprune.pruning.update.thinning import Thinning, thin_
from ditprune.pruning.update.trained import Trained


def draws(
    denoiser: nn.Module, layout: RowLayout, rows: Sequence[Call], settings: Distill
) -> Iterator[list[Call]]:
    """Batches of rows, all rows once before any comes again."""
    generator = torch.Generator().manual_seed(settings.seed)
    of_moment: dict[Any, list[int]] = {}
    samples = [layout.sample(row) for row in rows]
    moments = [
        (moment_of(denoiser, row), None if sample is None else sample.shape)
        for row, sample in zip(rows, samples, strict=True)
    ]
    for number, moment in enumerate(moments):
        of_moment.setdefault(moment, []).append(number)
    size = min(settings.rows_of_whole, len(rows))
    while True:
        order = torch.randperm(len(rows), generator=generator).tolist()
        for first in range(0, len(rows) - size + 1, size):
            batch = []
            for number in order[first : first + size]:
                likes = of_moment[moments[number]]
                other = likes[int(torch.randint(len(likes), (), generator=generator))]
                angle = settings.mixing * float(torch.rand((), generator=generator))
                batch.append(_turned(rows[number], samples[number], samples[other], angle))
            yield batch


def _turned(row: Call, sample: Tensor | None, other: Tensor | None, angle: float) -> Call:
    """The row with its noisy input turned towards another's: the variance stays what it was."""
    if not angle or sample is other or sample is None or other is None:
        return row
    mixture = math.cos(angle) * sample + math.sin(angle) * other
    return row.map(lambda leaf: mixture if leaf is sample else leaf)


_WARM_UP = 0.05
_RATE_OF_ERROR = 8e-3
_ASIDE = 16
_JUDGED_TOGETHER = 32


class Refinement:
    """Training towards the dense denoiser on some rows of the calls, and judging on the others.

    One row in sixteen is kept aside to judge by.

    Args:
        denoiser: trained in place; dense as yet. Its weights are kept to make it the teacher.
        names: of the layers that are trained.
        blocks: paths of the modules whose outputs are compared too.
    """

    def __init__(
        self, denoiser: nn.Module, names: Sequence[str], blocks: Sequence[str],
        calls: Sequence[Call], settings: Distill,
    ) -> None:  # fmt: skip
        self._denoiser, self._blocks, self._settings = denoiser, blocks, settings
        self._layout = RowLayout(denoiser, calls)
        self._dense = {
            name: denoiser.get_parameter(f"{name}.weight").detach().clone() for name in names
        }
        rows = [row for call in calls for row in self._layout.rows_of(call)]
        self._rows, aside = split(rows, settings.seed)
        aside = aside or self._rows
        together = [
            call
            for first in range(0, len(aside), _JUDGED_TOGETHER)
            for call in self._layout.merged(aside[first : first + _JUDGED_TOGETHER])
        ]
        self._judge = Judge(denoiser, together)
        self.unreached: list[str] = []  # layers to which training led no gradient

    def error_before(self) -> float:
        """The same before training. Raises ModelError where it is NaN or Inf."""
        return self._judge.error(self._denoiser)

    def error(self) -> float:
        """The relative error of the denoiser's predictions on the rows kept aside."""
        return self._judge.measured(self._denoiser)

    def train_(
        self, keep: Mapping[str, Tensor], rate: float, thinning: Thinning | None,
        settled: Mapping[str, tuple[Tensor, Tensor]], progress: Progress,
    ) -> dict[str, Tensor]:  # fmt: skip
        """Train the kept weights of the targets in place; the mask's zeros stay zero.

        Adam with a short warm-up and a cosine to zero.

        Args:
            keep: by target, True where a weight is kept, [C_out, C_in].
            rate: the largest learning rate.
            thinning: what else is removed on the way.
            settled: the weight and the mask that a target takes where no gradient reached it when
                the removal begins, [C_out, C_in].

        Returns:
            The masks at the end.
        """
        settings, keep = self._settings, dict(keep)
        weights = {name: self._denoiser.get_parameter(f"{name}.weight") for name in keep}
        trained = Trained(weights)
        batches = draws(self._denoiser, self._layout, self._rows, settings)
        with training(self._denoiser, list(weights.values())):
            for step in range(settings.num_steps):
                if thinning and thinning.is_due(step, settings.num_steps):
                    thinning = thin_(trained, keep, thinning, settled, step, settings.num_steps)
                backward = partial(self._backward, next(batches))
                trained.step_(rate * rate_at(step, settings.num_steps), backward, keep)
                progress("refining", step + 1, settings.num_steps)
        self.unreached = trained.unreached()
        return keep

    def _backward(self, batch: Sequence[Call], scale: float) -> None:
        """Gradients of the relative errors of a batch, times `scale`."""
        compared = self._blocks if self._settings.block_weight else ()
        for call in self._layout.merged(batch):
            share = self._layout.num_rows(call) / len(batch)
            with (
                torch.no_grad(),
                outputs_of(self._denoiser, compared) as expected,
                exchanged(self._denoiser, self._dense),
            ):
                target = prediction_of(self._denoiser, call)
            with torch.enable_grad(), outputs_of(self._denoiser, compared) as got:
                loss = distance(prediction_of(self._denoiser, call), target)
                pairs = [(a, b) for n in compared for a, b in zip(got[n], expected[n], strict=True)]
                if pairs:
                    distances = sum(relative(a, b) for a, b in pairs)
                    loss = loss + self._settings.block_weight * distances / len(pairs)
                if loss.requires_grad:
                    (loss * share * scale if scale != 1 else loss * share).backward()


def rate_for(error: float, settings: Distill) -> float:
    """The largest learning rate that suits this error, or the one that was asked for."""
    return settings.learning_rate or _RATE_OF_ERROR * math.sqrt(error)


def split(rows: Sequence[Call], seed: int) -> tuple[list[Call], list[Call]]:
    """Rows to train on, and rows to judge by."""
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed)).tolist()
    count = len(rows) // _ASIDE
    return [rows[i] for i in sorted(order[count:])], [rows[i] for i in sorted(order[:count])]


def rate_at(step: int, num_steps: int) -> float:
    warm = max(1, int(_WARM_UP * num_steps))
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, num_steps - warm)))
