"""What does it cost if a block goes? The error of the predicted noise, forecast or measured.

A block adds Δ to what goes on. Without it the prediction moves by JΔ, up to curvature. Where g is
the gradient of the prediction's sum with random signs, (g·Δ)² is ‖JΔ‖² on average. So one backward
pass forecasts what every block costs; running the denoiser without a block measures it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ditprune.calls import Call
from ditprune.denoiser.blockwise.gradients import floating, frozen
from ditprune.denoiser.blockwise.sweep import BackwardStep
from ditprune.denoiser.replay import predicted, relative_error, run_call
from ditprune.denoiser.rows import num_rows
from ditprune.pruning.update.gradients import outside_inference
from ditprune.pruning.update.output_grams import signed_sum
from ditprune.shrinking.drop import staying, without_blocks
from ditprune.shrinking.identity import added_by, watching


def measured_block_costs(
    denoiser: nn.Module, calls: Sequence[Call], blocks: Sequence[str]
) -> dict[str, float]:
    """By block, the relative error of the predicted noise without it alone.

    The denoiser runs once for every call, and once more for every call and block.
    """
    whole = [predicted(run_call(denoiser, call.copied()), call) for call in calls]
    costs = {}
    for path in blocks:
        with without_blocks(denoiser, staying(denoiser, [path])):
            without = [predicted(run_call(denoiser, call.copied()), call) for call in calls]
        costs[path] = relative_error(zip(without, whole, strict=True))
    return costs


def block_costs(
    denoiser: nn.Module, calls: Sequence[Call], blocks: Sequence[str], seed: int = 0
) -> dict[str, float]:
    """By block, the relative error of the predicted noise without it alone, as a forecast.

    A forward and a backward pass for every call. A block that no gradient reaches costs nothing.
    """
    signed, costs, square = signed_sum(seed), dict.fromkeys(blocks, 0.0), 0.0
    current: list[tuple[str, list[Tensor], list[Tensor]]] = []

    def see(path: str, got: Call, output: Any) -> None:
        added = added_by(output, got)
        outputs = floating(output)
        for leaf in outputs:
            (leaf if leaf.requires_grad else leaf.requires_grad_()).retain_grad()
        current.append((path, outputs, added))

    with frozen(denoiser), torch.enable_grad(), watching(denoiser, blocks, see):
        for call in outside_inference(calls):
            current.clear()
            output = denoiser(*call.args, **call.kwargs)
            square += sum(
                float(t.detach().double().square().sum()) for _, t in predicted(output, call)
            )
            signed(output, call).backward()
            for path, outputs, added in current:
                gradients = [leaf.grad for leaf in outputs]
                costs[path] += added_cost(added, gradients, num_rows(call))
    return {path: cost / square for path, cost in costs.items()}


@contextmanager
def costing(step: BackwardStep) -> Iterator[list[float]]:
    """While the `with` block runs, `step.run` also gives the block's cost in each call.

    Over the sum of squares of what the denoiser predicts, the sum of these is a forecast as that of
    `block_costs`.
    """
    gradients, costs = step.given_gradients(), list[float]()

    def see(_path: str, got: Call, output: Any) -> None:
        number = len(costs)
        count = num_rows(step.calls[number])
        costs.append(added_cost(added_by(output, got), gradients[number], count))

    with watching(step.chain.denoiser, [step.path], see):
        yield costs


def added_cost(added: Sequence[Tensor], gradients: Sequence[Tensor | None], count: int) -> float:
    """The sum of (g·Δ)² over the rows of a call.

    Args:
        added: Δ, what a block adds to each of its outputs; none where nothing goes on.
        gradients: g of the same outputs; None where none comes back.
        count: of rows.
    """
    rows = torch.zeros(count, dtype=torch.float64)
    for delta, gradient in zip(added, gradients if added else (), strict=True):
        if gradient is None:
            continue
        products = gradient.double() * delta.detach().double()
        is_by_row = products.ndim > 1 and len(products) == count
        rows += products.flatten(1).sum(1).cpu() if is_by_row else products.sum().cpu() / count
    return float(rows.square().sum())
