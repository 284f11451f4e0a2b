"""What are the statistics of a loaded denoiser over calibration calls? One pass gives them."""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ditprune.calibration.observe import norms, observing
from ditprune.calibration.reach import unused
from ditprune.calls import NUM_BINS, Call
from ditprune.checkpoints.skeleton import module_fingerprints
from ditprune.checkpoints.statistics_file import Statistics
from ditprune.errors import ModelError, StatisticsError
from ditprune.method import numbers
from ditprune.method.choices import as_globs
from ditprune.targets.coverage import warn_of_outside
from ditprune.targets.discover import discover
from ditprune.targets.writable import refuse_without_values
from ditprune.writing.json_file import storable

_MASK_NAME = re.compile(r"mask", re.IGNORECASE)


def calibrate_denoiser(
    denoiser: nn.Module,
    batches: Iterable[Any],
    protocol: Mapping[str, object] | None = None,
    num_bins: int = NUM_BINS,
    blocks: str | Sequence[str] = (),
) -> Statistics:
    """Observe the inputs of every target while the denoiser runs over `batches`.

    Args:
        denoiser: any module with transformer blocks. It is not changed, hooks and modes included.
        batches: `ditprune.Call`s, dicts of keyword arguments for `forward`, or pairs
            (args, kwargs).
        protocol: how the batches were made; it is stored with the statistics.
        num_bins: the number of parts of the way from noise to image with norms of their own.
        blocks: globs over module paths that say where the transformer blocks are, as in
            `"double_blocks.*"`; by default they are found by their structure. They are kept with
            the statistics, so that pruning need not be told again.

    Returns:
        Statistics with the ℓ2 norm of every input channel over all tokens, [C_in] for each layer.

    Raises:
        RecipeError: `num_bins` is below 1, or `blocks` are no globs.
        ModelError: the denoiser has no transformer blocks, or a batch is of another kind.
        TargetError: one of `blocks` matches no module, or all of them no layer to prune.
        StatisticsError: there are no batches, or an input holds NaN or Inf.
    """
    num_bins = numbers.whole("num_bins", num_bins, numbers.MOST_BINS)
    globs = as_globs("blocks", blocks)
    targets = discover(denoiser, auxiliary=True, blocks=globs)
    refuse_without_values(denoiser, targets)
    warn_of_outside(denoiser, globs)
    fingerprints = module_fingerprints(denoiser, targets.values())
    unused_layers: list[str] = []

    def with_first_examined() -> Iterator[Any]:
        for number, batch in enumerate(batches):
            if number == 0:
                unused_layers.extend(find_unused(denoiser, Call.of(batch), fingerprints))
            yield batch

    statistics = observe_calls(denoiser, with_first_examined(), fingerprints, num_bins)
    warn_of_never_called(statistics)
    return replace(
        statistics,
        protocol=storable("protocol", {} if protocol is None else protocol, StatisticsError),
        unused=tuple(unused_layers),
        blocks=globs,
    )


def observe_calls(
    denoiser: nn.Module, batches: Iterable[Any], fingerprints: Mapping[str, str],
    num_bins: int = NUM_BINS,
) -> Statistics:  # fmt: skip
    """The statistics over these calls of the targets that `fingerprints` names.

    Raises ModelError and StatisticsError, as `calibrate` does.
    """
    num_calls = 0
    masked, total = Counter[str](), Counter[str]()
    with observing(denoiser, fingerprints, norms(num_bins)) as observation:
        for batch in batches:
            call = Call.of(batch)
            observation.run(call)
            num_calls += 1
            for name, (num_masked, num_tokens) in _padding(call).items():
                masked[name] += num_masked
                total[name] += num_tokens
    if num_calls == 0:
        raise StatisticsError("calibrate: no batches given; at least one denoiser call is needed")
    observation.check_finite(lambda state: state.sum_squares)
    called = [name for name in fingerprints if name in observation.states]
    return Statistics(
        {name: observation.states[name] for name in called},
        fingerprints,
        num_calls,
        tuple(name for name in fingerprints if name not in observation.states),
        num_inputs={name: observation.num_inputs[name] for name in called},
        padding={name: (masked[name], total[name]) for name in masked},
    )


def find_unused(denoiser: nn.Module, call: Call, names: Iterable[str]) -> tuple[str, ...]:
    """The layers that this call runs in vain; a warning and none if they cannot be found out."""
    try:
        return unused(denoiser, call, names)
    except ModelError as error:
        warnings.warn(str(error), stacklevel=3)
        return ()


def warn_of_never_called(statistics: Statistics, prefix: str = "") -> None:
    """Warn of targets that no call reached: they will stay dense."""
    names = statistics.never_called
    if names:
        warnings.warn(
            f"{prefix}{len(names)} of {len(statistics.fingerprints)} targets were never called in "
            f"calibration and will stay dense, first {names[0]}",
            stacklevel=3,
        )


def _padding(call: Call) -> dict[str, tuple[int, int]]:
    """For each argument that masks tokens [N, L] with 0 and 1: (masked tokens, all tokens)."""
    padding = {}
    for name, value in call.kwargs.items():
        if _MASK_NAME.search(name) and isinstance(value, Tensor) and value.ndim == 2:
            num_masked = value.numel() - int(torch.count_nonzero(value))
            is_binary = value.dtype == torch.bool or bool(((value == 0) | (value == 1)).all())
            if is_binary and num_masked:
                padding[name] = (num_masked, value.numel())
    return padding
