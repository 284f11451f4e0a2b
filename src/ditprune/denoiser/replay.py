"""What does a denoiser predict for recorded calls, and how far apart are two predictions?"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ditprune.calls import Call
from ditprune.errors import ModelError, is_out_of_memory, reason_of

# The floating tensors of an output, each with its place; the items of a list share theirs.
Prediction = list[tuple[str, Tensor]]


@contextmanager
def evaluating(denoiser: nn.Module) -> Iterator[None]:
    """Eval mode and no gradients inside the block; each module gets its own mode back after it.

    What was compiled runs as it was written, since hooks would compile it again and again.
    """
    modes = [(module, module.training) for module in denoiser.modules()]
    denoiser.eval()
    try:
        with as_written(), torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training


def as_written() -> AbstractContextManager[object]:
    """Compiled modules run uncompiled inside the block."""
    is_loaded = "torch._dynamo" in sys.modules  # nothing is compiled without it, and it loads long
    return torch.compiler.set_stance("force_eager") if is_loaded else nullcontext()


def run_call(denoiser: nn.Module, batch: Any) -> Any:
    """The denoiser's output for one batch, in eval mode, without gradients."""
    call = Call.of(batch)
    with evaluating(denoiser):
        return denoiser(*call.args, **call.kwargs)


@contextmanager
def fitting(source: Path | str) -> Iterator[None]:
    """If the denoiser cannot run the calls, raise a ModelError that names their `source`."""
    try:
        yield
    except (RuntimeError, TypeError, ValueError, LookupError, AttributeError) as error:
        if is_out_of_memory(error):
            raise
        raise ModelError(
            f"{source}: the denoiser cannot run the calibration calls ({reason_of(error)}); "
            "sample them from this model"
        ) from error


def predicted_noise(output: Any, num_channels: int | None = None) -> Tensor:
    """The noise [N, C, …] in a denoiser's output: `sample`, the first item, or the tensor itself.

    A model that also predicts a variance returns twice the channels [N, 2C, …]; the noise is in
    the first `num_channels`.
    """
    sample = getattr(output, "sample", None)
    noise = sample if sample is not None else output[0] if isinstance(output, tuple) else output
    return _without_variance(noise, num_channels)


def predicted(output: Any, call: Call) -> Prediction:
    """All floating tensors of an output, without the half of the channels that is a variance.

    Raises ModelError where there is none.
    """
    sample = call.sample()
    num_channels = sample.shape[1] if sample.ndim > 1 else None
    given = [
        (place, _without_variance(tensor, num_channels))
        for place, tensor in tensors_in(output)
        if tensor.is_floating_point()
    ]
    if not given:
        raise ModelError(
            f"the denoiser returns {type(output).__name__} without a floating tensor; expected the "
            "predicted noise"
        )
    return given


def tensors_in(tree: Any, place: str = "", seen: set[int] | None = None) -> Prediction:
    """Every tensor in nested mappings, sequences and attributes of plain objects."""
    seen = set() if seen is None else seen
    if isinstance(tree, Tensor):
        return [(place, tree)]
    if id(tree) in seen or isinstance(tree, (nn.Module, type, str, bytes)):
        return []
    seen.add(id(tree))
    if isinstance(tree, Mapping):
        items = list(tree.items())
    elif isinstance(tree, tuple):
        items = list(enumerate(tree))
    elif isinstance(tree, (list, set, frozenset)):
        items = [("", item) for item in tree]
    else:
        items = list(getattr(tree, "__dict__", {}).items())
    return [part for key, item in items for part in tensors_in(item, f"{place}.{key}", seen)]


def relative_error(
    pairs: Iterable[tuple[Tensor | Prediction, Tensor | Prediction]],
) -> float:
    """mean‖ε_pruned − ε_dense‖² / mean‖ε_dense‖² over calls, summed in float64.

    Where a denoiser predicts several tensors, it is the mean of theirs.

    Args:
        pairs: what the pruned and the dense model predict, by call; any equal shapes.
    """
    differences: dict[str, float] = {}
    squares: dict[str, float] = {}
    for pruned, dense in pairs:
        for (place, got), (_, expected) in zip(_parts(pruned), _parts(dense), strict=True):
            square = (got.double() - expected.double()).square().sum().item()
            differences[place] = differences.get(place, 0.0) + square
            squares[place] = squares.get(place, 0.0) + expected.double().square().sum().item()
    errors = [differences[place] / square for place, square in squares.items() if square != 0]
    return sum(errors) / len(errors)


def _parts(given: Tensor | Prediction) -> Sequence[tuple[str, Tensor]]:
    return [("", given)] if isinstance(given, Tensor) else given


def _without_variance(noise: Tensor, num_channels: int | None) -> Tensor:
    if num_channels and noise.ndim > 1 and noise.shape[1] == 2 * num_channels:
        return noise[:, :num_channels]
    return noise
