"""What does a denoiser predict for recorded calls, and how far apart are two predictions?"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ditprune.calls import Call
from ditprune.errors import ModelError, is_out_of_memory, reason_of


@contextmanager
def evaluating(denoiser: nn.Module) -> Iterator[None]:
    """Eval mode and no gradients inside the block; each module gets its own mode back after it."""
    modes = [(module, module.training) for module in denoiser.modules()]
    denoiser.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training


def run_call(denoiser: nn.Module, batch: Any) -> Any:
    """The denoiser's output for one batch, in eval mode, without gradients."""
    call = Call.of(batch)
    with evaluating(denoiser):
        return denoiser(*call.args, **call.kwargs)


@contextmanager
def fitting(source: Path) -> Iterator[None]:
    """If the denoiser cannot run the calls, raise a ModelError that names their `source`."""
    try:
        yield
    except (RuntimeError, TypeError, ValueError, LookupError, AttributeError) as error:
        if is_out_of_memory(error):
            raise
        raise ModelError(
            f"{source}: the denoiser cannot run the calibration calls ({reason_of(error)}); "
            "sample them from this model"
        ) from None


def predicted_noise(output: Any, num_channels: int | None = None) -> Tensor:
    """The noise [N, C, …] in a denoiser's output: `sample`, the first item, or the tensor itself.

    A model that also predicts a variance returns twice the channels [N, 2C, …]; the noise is in
    the first `num_channels`.
    """
    sample = getattr(output, "sample", None)
    noise = sample if sample is not None else output[0] if isinstance(output, tuple) else output
    if num_channels and noise.ndim > 1 and noise.shape[1] == 2 * num_channels:
        return noise[:, :num_channels]
    return noise


def relative_error(pairs: Iterable[tuple[Tensor, Tensor]]) -> float:
    """mean‖ε_pruned − ε_dense‖² / mean‖ε_dense‖² over calls, summed in float64.

    Args:
        pairs: the predicted noise of the pruned and of the dense model, by call; any equal shapes.
    """
    sum_difference = sum_dense = 0.0
    for pruned, dense in pairs:
        sum_difference += (pruned.double() - dense.double()).square().sum().item()
        sum_dense += dense.double().square().sum().item()
    return sum_difference / sum_dense
