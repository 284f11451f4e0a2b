"""Gradient steps on all kept weights together, towards the dense denoiser's predictions."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ditprune.calls import Call
from ditprune.denoiser.capture import moment_of
from ditprune.denoiser.layout import RowLayout
from ditprune.denoiser.replay import Prediction, evaluating, predicted
from ditprune.errors import ModelError, is_out_of_memory, reason_of
from ditprune.method.distill import Distill
from ditprune.progress import Progress
from ditprune.pruning.update.judge import Judge
from ditprune.pruning.update.swap import exchanged
from ditprune.pruning.update.thinning import Thinning
from ditprune.targets.matrix import as_matrix


def draws(
    denoiser: nn.Module, layout: RowLayout, rows: Sequence[Call], settings: Distill
) -> Iterator[list[Call]]:
    """Batches of `batch_size` rows, all rows once before any comes again."""
    generator = torch.Generator().manual_seed(settings.seed)
    of_moment: dict[Any, list[int]] = {}
    samples = [layout.sample(row) for row in rows]
    moments = [
        (moment_of(denoiser, row), None if sample is None else sample.shape)
        for row, sample in zip(rows, samples, strict=True)
    ]
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
                batch.append(_turned(rows[number], samples[number], samples[other], angle))
            yield batch


def _turned(row: Call, sample: Tensor | None, other: Tensor | None, angle: float) -> Call:
    """The row with its noisy input turned towards another's: the variance stays what it was."""
    if not angle or sample is other or sample is None or other is None:
        return row
    mixture = math.cos(angle) * sample + math.sin(angle) * other
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
        self._rows, aside = _split(rows, settings.seed)
        aside = aside or self._rows
        together = [
            call
            for first in range(0, len(aside), _JUDGED_TOGETHER)
            for call in self._layout.merged(aside[first : first + _JUDGED_TOGETHER])
        ]
        self._judge = Judge(denoiser, together)
        self.unreached: list[str] = []  # layers to which training led no gradient

    def error(self) -> float:
        """The relative error of the denoiser's predictions on the rows kept aside."""
        return self._judge.error(self._denoiser)

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
        batches = draws(self._denoiser, self._layout, self._rows, settings)
        with training(self._denoiser, list(weights.values())):
            optimizer = torch.optim.Adam(weights.values(), lr=rate, betas=_BETAS, foreach=True)
            for step in range(settings.num_steps):
                for group in optimizer.param_groups:
                    group["lr"] = rate * _rate(step, settings.num_steps)
                if thinning and thinning.is_due(step, settings.num_steps):
                    scores = _scores(weights, optimizer)
                    thinning = self._settled_(weights, keep, thinning, scores, settled)
                    keep |= thinning.masks(keep, scores, step, settings.num_steps)
                optimizer.zero_grad()
                self._backward(next(batches))
                optimizer.step()
                _mask_(weights, keep)
                progress("refining", step + 1, settings.num_steps)
        return keep

    @torch.no_grad()
    def _settled_(
        self, weights: Mapping[str, Tensor], keep: dict[str, Tensor], thinning: Thinning,
        reached: Mapping[str, Tensor], settled: Mapping[str, tuple[Tensor, Tensor]],
    ) -> Thinning:  # fmt: skip
        """Give targets that no gradient has reached what they settle for; the others go on."""
        late = thinning.layers.keys() - reached.keys()
        for name in late:
            weight, keep[name] = settled[name]
            weights[name].copy_(weight.view(weights[name].shape))
        return thinning.without(late)

    def _backward(self, batch: Sequence[Call]) -> None:
        """Gradients of the relative errors of a batch."""
        compared = self._blocks if self._settings.block_weight else ()
        for call in self._layout.merged(batch):
            share = self._layout.num_rows(call) / len(batch)
            with (
                torch.no_grad(),
                _outputs_of(self._denoiser, compared) as expected,
                exchanged(self._denoiser, self._dense),
            ):
                target = _predict(self._denoiser, call)
            with torch.enable_grad(), _outputs_of(self._denoiser, compared) as got:
                loss = _distance(_predict(self._denoiser, call), target)
                pairs = [(a, b) for n in compared for a, b in zip(got[n], expected[n], strict=True)]
                if pairs:
                    distances = sum(_relative(a, b) for a, b in pairs)
                    loss = loss + self._settings.block_weight * distances / len(pairs)
                if loss.requires_grad:
                    (loss * share).backward()


def rate_for(error: float, settings: Distill) -> float:
    """The largest learning rate that suits this error, or the one that was asked for."""
    return settings.learning_rate or _RATE_OF_ERROR * math.sqrt(error)


@torch.no_grad()
def _mask_(weights: Mapping[str, Tensor], keep: Mapping[str, Tensor]) -> None:
    for name, weight in weights.items():
        weight.mul_(keep[name].view(weight.shape))


@torch.no_grad()
def _scores(weights: Mapping[str, Tensor], optimizer: torch.optim.Adam) -> dict[str, Tensor]:
    """W² √v of every weight that a gradient has reached, as matrices."""
    return {
        name: as_matrix(weight.square() * optimizer.state[weight]["exp_avg_sq"].sqrt()).float()
        for name, weight in weights.items()
        if "exp_avg_sq" in optimizer.state.get(weight, {})
    }


def _split(rows: list[Call], seed: int) -> tuple[list[Call], list[Call]]:
    """Rows to train on, and rows to judge by."""
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed)).tolist()
    count = len(rows) // _ASIDE
    return [rows[i] for i in sorted(order[count:])], [rows[i] for i in sorted(order[:count])]


def check_gradients(denoiser: nn.Module, names: Iterable[str], calls: Sequence[Call]) -> None:
    """Take gradients for one row, before anything long runs. Raises ModelError if there are none.

    Layers that no gradient reaches are not told here: another row may reach them.
    """
    weights = [denoiser.get_parameter(f"{name}.weight") for name in names]
    if any(weight.is_inference() for weight in weights):
        raise ModelError(
            f"{type(denoiser).__name__}: this recipe takes gradients, and its weights were made "
            "under torch.inference_mode(), which allows none; load the model outside of it"
        )
    why = "no gradient reaches a target, as its forward runs without (torch.no_grad)"
    try:
        with torch.inference_mode(False):
            call = outside_inference(calls[:1])[0]
            row = RowLayout(denoiser, [call]).rows_of(call)[0]
            with training(denoiser, weights), torch.enable_grad():
                loss = _distance(_predict(denoiser, row), [])
                if loss.requires_grad:
                    loss.backward()
                if any(weight.grad is not None for weight in weights):
                    return
    except (RuntimeError, NotImplementedError) as error:
        if is_out_of_memory(error):
            raise
        why = reason_of(error)
    raise ModelError(
        f"{type(denoiser).__name__}: this recipe takes gradients and gets none ({why}); leave the "
        "refinement out and let the reconstruction choose the mask (refinement=None, "
        "mask='reconstruction'), with allocation='sensitivity' or 'owl'"
    )


def outside_inference(calls: Sequence[Call]) -> list[Call]:
    """The calls with copies of what was made under torch.inference_mode(), which no gradient takes.

    Run it outside of that mode.
    """
    return [call.map(_normal) for call in calls]


def _normal(leaf: Any) -> Any:
    return leaf.clone() if isinstance(leaf, Tensor) and leaf.is_inference() else leaf


def _distance(given: Prediction, reference: Prediction) -> Tensor:
    """The mean relative error of all tensors of a prediction; their squares without reference."""
    if not reference:
        return torch.stack([tensor.square().mean().float() for _, tensor in given]).mean()
    distances = [_relative(a, b) for (_, a), (_, b) in zip(given, reference, strict=True)]
    return (
        distances[0] if len(distances) == 1 else sum(distances[1:], distances[0]) / len(distances)
    )


def _relative(output: Tensor, reference: Tensor) -> Tensor:
    """‖output − reference‖² / ‖reference‖²."""
    scale = reference.square().mean().clamp_min(torch.finfo(reference.dtype).tiny)
    return (output - reference).square().mean() / scale


def _predict(denoiser: nn.Module, call: Call) -> Prediction:
    return predicted(denoiser(*call.args, **call.kwargs), call)


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
        with torch.inference_mode(False), evaluating(denoiser):
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
