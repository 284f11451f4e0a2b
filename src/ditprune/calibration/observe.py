"""Hooks that watch what enters each target; removed whatever happens.

Query, key and value receive one and the same tensor, cross-attention keys and values of all
blocks too. States are values, so an update is remembered by (state, tensor): layers that have
always seen the same tensors end up holding the same state object, computed once, and part ways
by themselves the first time they do not.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from ditprune.denoiser.tokens import input_of
from ditprune.method.statistics import column_norm
from ditprune.method.statistics.collected import bin_of
from ditprune.method.statistics.column_norm import ColumnNorm
from ditprune.targets.matrix import channels_last

State = TypeVar("State")


@dataclass(frozen=True)
class Collector(Generic[State]):
    """How a statistic is collected.

    Args:
        start: its state for so many channels on a device.
        update: the state with more tokens, channels last, of a call at a place between noise (0)
            and image (1).
    """

    start: Callable[[int, torch.device], State]
    update: Callable[[State, Tensor, float | None], State]


def norms(num_bins: int) -> Collector[ColumnNorm]:
    """Column norms in so many bins, and one more for calls that do not say where they are."""
    return Collector[ColumnNorm](
        lambda num_channels, device: column_norm.start(num_channels, num_bins + 1, device),
        lambda state, inputs, place: column_norm.update(state, inputs, bin_of(place, num_bins)),
    )


class Observation(Generic[State]):
    """The state of every watched layer, updated at each call while `is_watching`."""

    def __init__(self, collector: Collector[State]) -> None:
        self.states: dict[str, State] = {}
        self.num_inputs: dict[str, int] = {}
        self.is_watching = False
        self.place: float | None = None
        self._collector = collector
        self._empty: dict[tuple[int, torch.device], State] = {}
        self._memo: dict[tuple[int, int], tuple[Any, int, State, State]] = {}

    def see(self, name: str, inputs: Tensor) -> None:
        """Add one input of one layer."""
        state = self.states.get(name)
        if state is None:
            key = (inputs.shape[-1], _sums_device(inputs))
            if key not in self._empty:
                self._empty[key] = self._collector.start(*key)
            state = self._empty[key]
        self.states[name] = self._update(state, inputs)
        self.num_inputs[name] = self.num_inputs.get(name, 0) + 1

    def forget_inputs(self) -> None:
        """Start of a denoiser call: no tensor of the last one can come again."""
        self._memo.clear()

    def _update(self, state: State, inputs: Tensor) -> State:
        if inputs.is_inference():  # has no version, so a change in place would go unseen
            return self._collector.update(state, inputs, self.place)
        key, version = (id(state), id(inputs)), inputs._version
        known = self._memo.get(key)
        # An id may be reused after its object died, a tensor may be written in place: both show.
        if known and known[0]() is inputs and known[1] == version and known[2] is state:
            return known[3]
        updated = self._collector.update(state, inputs, self.place)
        self._memo[key] = (weakref.ref(inputs), version, state, updated)
        return updated


@contextmanager
def observing(
    denoiser: nn.Module, names: Iterable[str], collector: Collector[State]
) -> Iterator[Observation[State]]:
    """Hooks on these layers while the block runs; none stays behind."""
    observation = Observation(collector)
    handles = [denoiser.register_forward_pre_hook(lambda *_: observation.forget_inputs())]
    try:
        for name in names:
            handles.append(
                denoiser.get_submodule(name).register_forward_pre_hook(
                    _hook(observation, name), with_kwargs=True
                )
            )
        yield observation
    finally:
        for handle in handles:
            handle.remove()


def _sums_device(inputs: Tensor) -> torch.device:
    """Where the sums of these inputs are kept: beside them, but for MPS, which has no float64."""
    return torch.device("cpu") if inputs.device.type == "mps" else inputs.device


@contextmanager
def watching(observation: Observation[Any], place: float | None = None) -> Iterator[None]:
    """Count the calls of this block; batches may themselves be drawn with the same denoiser."""
    observation.is_watching, observation.place = True, place
    try:
        yield
    finally:
        observation.is_watching = False


def _hook(observation: Observation[Any], name: str) -> Any:
    def hook(layer: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
        if observation.is_watching:
            observation.see(name, channels_last(layer, input_of(args, kwargs)))

    return hook
