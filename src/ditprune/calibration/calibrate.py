"""One forward pass over the calibration calls gives the statistics of every target."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from ditprune.calibration.observe import observing, watching
from ditprune.calibration.replay import run_call
from ditprune.checkpoints import fingerprint
from ditprune.errors import StatisticsError
from ditprune.statistics.collected import Statistics
from ditprune.targets.discover import discover


def calibrate(
    denoiser: nn.Module, batches: Iterable[Any], protocol: Mapping[str, object] | None = None
) -> Statistics:
    """Observe the inputs of every target while the denoiser runs over `batches`.

    Args:
        denoiser: any module with transformer blocks; left as it was, hooks and modes included.
        batches: dicts of keyword arguments for its forward, or pairs (args, kwargs).
        protocol: how the batches were made, kept with the statistics.

    Returns:
        Statistics with the ℓ2 norm of every input channel over all tokens.

    Raises:
        ModelError: no transformer blocks, or a batch of another kind.
        StatisticsError: no batches, or an input with NaN or Inf.
    """
    targets = discover(denoiser)
    num_calls = 0
    with observing(denoiser, targets) as observation:
        for batch in batches:
            with watching(observation):
                run_call(denoiser, batch)
            num_calls += 1
    if num_calls == 0:
        raise StatisticsError("calibrate: no batches given; at least one denoiser call is needed")
    for name, state in observation.states.items():
        if not state.sum_squares.isfinite().all():
            raise StatisticsError(
                f"{name}: its calibration inputs hold NaN or Inf; look at the batches, or run the "
                "denoiser in float32 or bfloat16"
            )
    never_called = tuple(name for name in targets if name not in observation.states)
    if never_called:
        warnings.warn(
            f"{len(never_called)} of {len(targets)} targets were never called in calibration and "
            f"will stay dense, first {never_called[0]}",
            stacklevel=2,
        )
    return Statistics(
        {name: observation.states[name] for name in targets if name in observation.states},
        fingerprint.of_module(denoiser, targets.values()),
        num_calls,
        never_called,
        dict(protocol or {}),
    )
