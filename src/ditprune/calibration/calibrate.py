"""One forward pass over the calibration calls gives the statistics of every target."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ditprune.calibration.observe import norms, observing, watching
from ditprune.calibration.reach import unused
from ditprune.calls import Call
from ditprune.checkpoints import fingerprint
from ditprune.denoiser.replay import run_call
from ditprune.errors import ModelError, RecipeError, StatisticsError
from ditprune.method.statistics.collected import NUM_BINS, Statistics
from ditprune.targets.discover import discover

_MASK = re.compile(r"mask", re.IGNORECASE)


def calibrate(
    denoiser: nn.Module,
    batches: Iterable[Any],
    protocol: Mapping[str, object] | None = None,
    num_bins: int = NUM_BINS,
) -> Statistics:
    """Observe the inputs of every target while the denoiser runs over `batches`.

    Args:
        denoiser: any module with transformer blocks; left as it was, hooks and modes included.
        batches: `ditprune.Call`s, dicts of keyword arguments for its forward, or pairs
            (args, kwargs).
        protocol: how the batches were made, kept with the statistics.
        num_bins: parts of the way from noise to image to keep norms for.

    Returns:
        Statistics with the ℓ2 norm of every input channel over all tokens.

    Raises:
        RecipeError: no bins.
        ModelError: no transformer blocks, or a batch of another kind.
        StatisticsError: no batches, or an input with NaN or Inf.
    """
    if num_bins < 1:
        raise RecipeError(f"--num-bins {num_bins}: expected at least 1")
    targets = discover(denoiser, auxiliary=True)
    own = fingerprint.of_module(denoiser, targets.values())
    vain: list[str] = []

    def watched() -> Iterator[Any]:
        for number, batch in enumerate(batches):
            if number == 0:
                vain.extend(find_unused(denoiser, Call.of(batch), own))
            yield batch

    statistics = observe_calls(denoiser, watched(), own, num_bins)
    warn_of_silence(statistics)
    return replace(statistics, protocol=dict(protocol or {}), unused=tuple(vain))


def observe_calls(
    denoiser: nn.Module, batches: Iterable[Any], fingerprints: Mapping[str, str],
    num_bins: int = NUM_BINS,
) -> Statistics:  # fmt: skip
    """The statistics of the targets that `fingerprints` names, over these calls."""
    num_calls = 0
    padding: dict[str, tuple[int, int]] = {}
    with observing(denoiser, fingerprints, norms(num_bins)) as observation:
        for batch in batches:
            call = Call.of(batch)
            with watching(observation, call.place):
                run_call(denoiser, call)
            num_calls += 1
            for name, (masked, total) in _padding(call).items():
                before = padding.get(name, (0, 0))
                padding[name] = (before[0] + masked, before[1] + total)
    if num_calls == 0:
        raise StatisticsError("calibrate: no batches given; at least one denoiser call is needed")
    for name, state in observation.states.items():
        if not state.sum_squares.isfinite().all():
            raise StatisticsError(
                f"{name}: its calibration inputs hold NaN or Inf; look at the batches, or run the "
                "denoiser in float32 or bfloat16"
            )
    called = [name for name in fingerprints if name in observation.states]
    return Statistics(
        {name: observation.states[name] for name in called},
        fingerprints,
        num_calls,
        tuple(name for name in fingerprints if name not in observation.states),
        num_inputs={name: observation.num_inputs[name] for name in called},
        padding=padding,
    )


def find_unused(denoiser: nn.Module, call: Call, names: Iterable[str]) -> tuple[str, ...]:
    """The layers that this call runs in vain; none, and a warning, where that cannot be told."""
    try:
        return unused(denoiser, call, names)
    except ModelError as error:
        warnings.warn(str(error), stacklevel=3)
        return ()


def warn_of_silence(statistics: Statistics, of: str = "") -> None:
    """Say which targets no call reached: they will stay dense."""
    missing = statistics.never_called
    if missing:
        warnings.warn(
            f"{of}{len(missing)} of {len(statistics.fingerprints)} targets were never called in "
            f"calibration and will stay dense, first {missing[0]}",
            stacklevel=3,
        )


def _padding(call: Call) -> dict[str, tuple[int, int]]:
    """By argument that masks tokens [N, L] with 0 and 1, how many of how many it masks."""
    found = {}
    for name, value in call.kwargs.items():
        if _MASK.search(name) and isinstance(value, Tensor) and value.ndim == 2:
            num_masked = value.numel() - int(torch.count_nonzero(value))
            is_binary = value.dtype == torch.bool or bool(((value == 0) | (value == 1)).all())
            if is_binary and num_masked:
                found[name] = (num_masked, value.numel())
    return found
