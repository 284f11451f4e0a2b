"""What enters each layer of a denoiser? Hooks collect a statistic of it: column norms or Grams.

Query, key and value receive the same tensor, and so do the cross-attention keys and values of all
blocks. A state is a value, and an update is remembered by (state, tensor): layers that have always
seen the same tensors hold the same state object, which is computed once. Their states part at the
first tensor that differs.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from ditprune.calls import Call, bin_of
from ditprune.denoiser.capture import hooked, input_of
from ditprune.denoiser.replay import run_call
from ditprune.errors import StatisticsError
from ditprune.method.statistics.column_norm import ColumnNorm, start_norm, update_norm
from ditprune.method.statistics.gram import Gram, start_gram, update_gram
from ditprune.targets.discover import Target
from ditprune.targets.matrix import channels_last

State = TypeVar("State")

_GRAM_ITEM_BYTES = 4
_GRAM_COPIES = 2  # a state and its successor exist together during an update


@dataclass(frozen=True)
class Collector(Generic[State]):
    """How a statistic is collected.

    Args:
        start: the state of no tokens, for a number of channels on a device.
        update: the state with more tokens [..., C_in] from a call at `progress_t`, its position
            from noise (0) to image (1).
    """

    start: Callable[[int, torch.device], State]
    update: Callable[[State, Tensor, float | None], State]


def norms(num_bins: int) -> Collector[ColumnNorm]:
    """Column norms in `num_bins` bins; one more bin is for calls without `progress_t`."""
    return Collector[ColumnNorm](
        lambda num_channels, device: start_norm(num_channels, num_bins + 1, device),
        lambda state, inputs, progress_t: update_norm(state, inputs, bin_of(progress_t, num_bins)),
    )


class Observation(Generic[State]):
    """The state of every layer that was called, and how often it was called."""

    def __init__(self, denoiser: nn.Module, collector: Collector[State]) -> None:
        self.states: dict[str, State] = {}
        self.num_inputs: dict[str, int] = {}
        self._denoiser, self._collector = denoiser, collector
        self._call: Call | None = None
        self._empty: dict[tuple[int, torch.device], State] = {}
        self._memo: dict[tuple[int, int], tuple[Any, int, State, State]] = {}

    def run(self, call: Call) -> None:
        """Run a call and count what enters the layers; other calls of the denoiser do not count."""
        self.begin(call)
        try:
            run_call(self._denoiser, call)
        finally:
            self._call = None

    def begin(self, call: Call) -> None:
        """What enters the layers from here on counts as of this call, whoever runs them."""
        self._memo.clear()  # a tensor that comes again in another call counts again
        self._call = call

    def check_finite(self, sums_of: Callable[[State], Tensor]) -> None:
        """Raises StatisticsError for a layer whose sums are not finite."""
        for name, state in self.states.items():
            if not sums_of(state).isfinite().all():
                raise StatisticsError(
                    f"{name}: its calibration inputs hold NaN or Inf; look at the batches, or run "
                    "the denoiser in float32 or bfloat16"
                )

    def _see(self, name: str, layer: nn.Module, layer_call: Call) -> None:
        if self._call is None:
            return
        inputs = channels_last(layer, input_of(layer_call))
        state = self.states.get(name)
        if state is None:
            key = (inputs.shape[-1], _sums_device(inputs))
            if key not in self._empty:
                self._empty[key] = self._collector.start(*key)
            state = self._empty[key]
        self.states[name] = self._update(state, inputs, self._call.place)
        self.num_inputs[name] = self.num_inputs.get(name, 0) + 1

    def _update(self, state: State, inputs: Tensor, progress_t: float | None) -> State:
        if inputs.is_inference():  # has no version, so a change in place would go unseen
            return self._collector.update(state, inputs, progress_t)
        key, version = (id(state), id(inputs)), inputs._version
        known = self._memo.get(key)
        # An id may be reused after its object died, a tensor may be written in place: both show.
        if known and known[0]() is inputs and known[1] == version and known[2] is state:
            return known[3]
        updated = self._collector.update(state, inputs, progress_t)
        self._memo[key] = (weakref.ref(inputs), version, state, updated)
        return updated


@contextmanager
def observing(
    denoiser: nn.Module, names: Iterable[str], collector: Collector[State]
) -> Iterator[Observation[State]]:
    """Observe these layers while the block runs; no hook stays after it."""
    observation = Observation(denoiser, collector)
    layers = {name: denoiser.get_submodule(name) for name in names}
    with hooked(layers, observation._see):
        yield observation


def _sums_device(inputs: Tensor) -> torch.device:
    """The device of the sums: that of the inputs, except for MPS, which has no float64."""
    return torch.device("cpu") if inputs.device.type == "mps" else inputs.device


def collect_grams(
    denoiser: nn.Module,
    calls: Iterable[Call],
    names: Sequence[str],
    timestep_weights: Sequence[float] | None = None,
) -> dict[str, Gram]:
    """The Gram of the inputs of each named layer over these calls; uncalled layers are left out.

    Raises as `observing_grams`.
    """
    with observing_grams(denoiser, names, timestep_weights) as observation:
        for call in calls:
            observation.run(call)
    return observation.states


@contextmanager
def observing_grams(
    denoiser: nn.Module, names: Sequence[str], timestep_weights: Sequence[float] | None = None
) -> Iterator[Observation[Gram]]:
    """Observe the Grams of these layers while the block runs.

    Raises StatisticsError for weights with a call without `place`, and for NaN or Inf.
    """

    def update(state: Gram, inputs: Tensor, progress_t: float | None) -> Gram:
        if timestep_weights is None:
            return update_gram(state, inputs)
        return update_gram(state, inputs * weight_at(timestep_weights, progress_t) ** 0.5)

    with observing(denoiser, names, Collector(start_gram, update)) as observation:
        yield observation
    observation.check_finite(lambda state: state.sum_products)


def weight_at(weights: Sequence[float], progress_t: float | None) -> float:
    """How much a call counts. Raises StatisticsError where it does not say where it is."""
    if progress_t is None:
        raise StatisticsError(
            "--timestep-weighting: a call does not say where between noise and image it is; give "
            "ditprune.Call(…, place=…), or weight uniformly"
        )
    return weights[bin_of(progress_t, len(weights))]


def gram_bytes(target: Target) -> int:
    """The memory that collecting the Gram of one target takes."""
    return _GRAM_COPIES * _GRAM_ITEM_BYTES * target.shape[1] ** 2


def stages(targets: Mapping[str, Target], num_packages: int, max_bytes: int) -> list[list[str]]:
    """Cut targets into packages, and each package into stages whose Grams fit `max_bytes`.

    Each stage is a pass over the calibration calls. A target whose Gram alone exceeds the limit
    is a stage of its own. Inputs that layers share are counted once for each of these layers, so a
    stage may take less memory.

    Args:
        targets: in module order.
        num_packages: runs of blocks, as even as whole blocks allow.
    """
    return [
        names for package in _packages(targets, num_packages) for names in _cut(package, max_bytes)
    ]


def _cut(targets: Mapping[str, Target], max_bytes: int) -> list[list[str]]:
    """As many targets in a stage as fit."""
    cut: list[list[str]] = []
    size_bytes = 0
    for name, target in targets.items():
        if not cut or size_bytes + gram_bytes(target) > max_bytes:
            cut.append([])
            size_bytes = 0
        cut[-1].append(name)
        size_bytes += gram_bytes(target)
    return cut


def _packages(targets: Mapping[str, Target], num_packages: int) -> list[dict[str, Target]]:
    """Cut targets into `num_packages` runs of blocks, as even as whole blocks allow."""
    blocks = list(dict.fromkeys(target.block for target in targets.values()))
    packages: list[dict[str, Target]] = [{} for _ in range(min(num_packages, len(blocks)))]
    for name, target in targets.items():
        packages[blocks.index(target.block) * len(packages) // len(blocks)][name] = target
    return packages
