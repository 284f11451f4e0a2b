"""Hooks that watch what enters each target; removed whatever happens.

Query, key and value receive one and the same tensor, cross-attention keys and values of all
blocks too. States are values, so an update is remembered by (state, tensor): layers that have
always seen the same tensors end up holding the same state object, computed once, and part ways
by themselves the first time they do not.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ditprune.statistics import column_norm
from ditprune.statistics.column_norm import ColumnNorm
from ditprune.targets.matrix import channels_last


class Observation:
    """The state of every watched layer, updated at each call while `is_watching`."""

    def __init__(self) -> None:
        self.states: dict[str, ColumnNorm] = {}
        self.is_watching = False
        self._empty: dict[tuple[int, torch.device], ColumnNorm] = {}
        self._memo: dict[tuple[int, int], tuple[Any, int, ColumnNorm, ColumnNorm]] = {}

    def see(self, name: str, inputs: Tensor) -> None:
        """Add one input of one layer."""
        state = self.states.get(name)
        if state is None:
            key = (inputs.shape[-1], inputs.device)
            state = self._empty.setdefault(key, column_norm.start(*key))
        self.states[name] = self._update(state, inputs)

    def forget_inputs(self) -> None:
        """Start of a denoiser call: no tensor of the last one can come again."""
        self._memo.clear()

    def _update(self, state: ColumnNorm, inputs: Tensor) -> ColumnNorm:
        if inputs.is_inference():  # has no version, so a change in place would go unseen
            return column_norm.update(state, inputs)
        key, version = (id(state), id(inputs)), inputs._version
        known = self._memo.get(key)
        # An id may be reused after its object died, a tensor may be written in place: both show.
        if known and known[0]() is inputs and known[1] == version and known[2] is state:
            return known[3]
        updated = column_norm.update(state, inputs)
        self._memo[key] = (weakref.ref(inputs), version, state, updated)
        return updated


@contextmanager
def observing(denoiser: nn.Module, names: Iterable[str]) -> Iterator[Observation]:
    """Hooks on these layers while the block runs; none stays behind."""
    observation = Observation()
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


@contextmanager
def watching(observation: Observation) -> Iterator[None]:
    """Count the calls of this block; batches may themselves be drawn with the same denoiser."""
    observation.is_watching = True
    try:
        yield
    finally:
        observation.is_watching = False


def _hook(observation: Observation, name: str) -> Any:
    def hook(layer: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
        if observation.is_watching:
            observation.see(name, channels_last(layer, args[0] if args else kwargs["input"]))

    return hook
