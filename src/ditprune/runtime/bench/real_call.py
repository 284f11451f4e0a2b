"""One real call of each denoiser of a pipeline, and how many tokens each layer gets in it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ditprune.calibration.sample import Sampling, run_unit
from ditprune.calls import Call
from ditprune.denoiser.capture import StepRecorder, counting_tokens, denoisers_of
from ditprune.errors import ModelError

Tokens = dict[str, int]


def real_calls(
    pipeline: Any, sampling: Sampling, names: Mapping[str, list[str]]
) -> dict[str, tuple[Call, Tokens]]:
    """By denoiser, its first call of one sampling run, and the most tokens of each layer in it.

    One denoiser runs one step. Several run a whole schedule of two, so that each has its turn.

    Args:
        names: the layers to watch, by denoiser.

    Raises ModelError where a denoiser was never called.
    """
    denoisers = denoisers_of(pipeline, tuple(names))
    if len(names) > 1 and sampling.num_inference_steps is None:
        sampling = replace(sampling, num_inference_steps=2)

    def wanted(num_steps: int) -> dict[int, range]:
        steps = {0} if len(names) == 1 else {0, num_steps - 1}
        return {step: range(1) for step in steps}

    recorder = StepRecorder(pipeline, denoisers, 1, wanted)
    layers = {
        (name, layer): denoisers[name].get_submodule(layer)
        for name, own in names.items()
        for layer in own
    }
    with counting_tokens(layers) as counts:
        run_unit(pipeline, sampling, 0, recorder)
    calls: dict[str, Call] = {}
    for call in recorder.taken[0]:
        calls.setdefault(call.denoiser, call)
    for name in names:
        if name not in calls:
            raise ModelError(
                f"{type(pipeline).__name__}: its {name} was not called in two steps; pass "
                "--num-tokens, or the folder of this denoiser"
            )
    return {
        name: (calls[name], {one: max(counts[name, one]) for one in own if counts[name, one]})
        for name, own in names.items()
    }
