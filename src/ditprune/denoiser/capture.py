"""Records what a pipeline hands to its denoisers, by hooks that are always removed."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ditprune.calls import DENOISER, Call
from ditprune.denoiser.rows import num_rows, take_item
from ditprune.errors import ModelError

_TIMESTEP = ("timestep", "timesteps", "t")
_LARGEST_SHARE = 1.5  # timesteps up to here count from 0 to 1, above it from 0 to 1000


@contextmanager
def recorded(denoiser: nn.Module) -> Iterator[list[Call]]:
    """The calls that a denoiser gets while the block runs, on the CPU, in order.

    For pipelines that need more than a prompt: run them inside, then `ditprune.calibrate` with
    the list. Everything is kept, so run few steps of few images.
    """
    calls: list[Call] = []

    def see(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        calls.append(Call(args, kwargs).map(to_cpu))

    handle = denoiser.register_forward_pre_hook(see, with_kwargs=True)
    try:
        yield calls
    finally:
        handle.remove()


@dataclass(frozen=True)
class Style:
    """How a pipeline calls its denoiser.

    Args:
        rows_per_image: 2 where guidance stacks the condition and none.
        calls_per_step: 2 where guidance calls twice.
        guidance_argument: whether the guidance scale is an input of the denoiser.
        timestep_argument: its name; None where the denoiser gets none.
        timestep_scale: 1000 or 1, the largest timestep; None without one.
        timestep_falls: whether it falls from noise to image.
    """

    rows_per_image: int
    calls_per_step: int
    guidance_argument: bool
    timestep_argument: str | None
    timestep_scale: int | None
    timestep_falls: bool | None


class _Enough(BaseException):
    """Ends a sampling run whose further calls nobody wants; no pipeline catches it."""


class StepRecorder:
    """Takes given items at given steps of one sampling run, and ends it after the last of them.

    Args:
        pipeline: with `scheduler.timesteps` once it runs.
        denoisers: its denoisers by component name.
        batch_size: items of the run.
        wanted: for a number of steps, the items (rows of the batch) to take at each step.
    """

    def __init__(
        self,
        pipeline: Any,
        denoisers: Mapping[str, nn.Module],
        batch_size: int,
        wanted: Callable[[int], Mapping[int, Sequence[int]]],
    ) -> None:
        self.taken: dict[int, list[Call]] = {}
        self.num_steps = 0
        self.started_s: list[float] = []  # when each step began
        self._pipeline, self._denoisers, self._batch_size = pipeline, denoisers, batch_size
        self._choose, self._wanted = wanted, dict[int, Sequence[int]]()
        self._step = -1
        self._moment: tuple[float, float] | None = None
        self._calls_in_step: list[int] = []
        self._first: tuple[Call, nn.Module] | None = None
        self._timesteps: list[float] = []
        self._num_rows = 0

    def record(self, run: Callable[[], Any]) -> None:
        """Run the pipeline. Raises ModelError where it did not pass the steps that were wanted."""
        handles = [
            denoiser.register_forward_pre_hook(self._hook(name), with_kwargs=True)
            for name, denoiser in self._denoisers.items()
        ]
        try:
            run()
        except _Enough:
            if hasattr(self._pipeline, "maybe_free_model_hooks"):
                self._pipeline.maybe_free_model_hooks()
        finally:
            for handle in handles:
                handle.remove()
        missing = set().union(*map(set, self._wanted.values())) - self.taken.keys()
        if self._step < 0 or missing:
            raise ModelError(
                f"{type(self._pipeline).__name__} called its denoiser at {self._step + 1} of "
                f"{self.num_steps} steps; run it yourself inside `with ditprune.recorded(denoiser)`"
            )

    def style(self) -> Style:
        """How the denoiser was called, as far as this run went."""
        assert self._first is not None
        call, denoiser = self._first
        name, _ = _timestep(denoiser, call)
        largest = max(self._timesteps, default=0.0)
        return Style(
            self._num_rows // self._batch_size,
            self._calls_in_step[0],
            any("guidance" in n and v is not None for n, v in call.kwargs.items()),
            name,
            None if name is None else 1 if largest <= _LARGEST_SHARE else 1000,
            None if name is None or len(self._timesteps) < 2
            else self._timesteps[-1] < self._timesteps[0],
        )  # fmt: skip

    def _hook(self, name: str) -> Callable[..., None]:
        def see(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self._see(name, module, Call(args, kwargs))

        return see

    def _see(self, name: str, module: nn.Module, call: Call) -> None:
        if self._step < 0:
            self.num_steps = _num_steps(self._pipeline)
            self._wanted = dict(self._choose(self.num_steps))
            self._num_rows = num_rows(call)
            self._first = (Call(call.args, call.kwargs).map(_without_values), module)
        _, timestep = _timestep(module, call)
        moment = None if timestep is None else _extremes(timestep)
        # Two calls at one timestep (condition, then none) are one step.
        if self._step < 0 or moment is None or moment != self._moment:
            self._step += 1
            self._calls_in_step.append(0)
            self.started_s.append(time.monotonic())
            if moment is not None:
                self._timesteps.append(moment[1])
        self._moment = moment
        if self._step > max(self._wanted):
            raise _Enough
        self._calls_in_step[-1] += 1
        place = (self._step + 0.5) / self.num_steps
        for row in self._wanted.get(self._step, ()):
            item = take_item(Call(call.args, call.kwargs, place, name), row, self._batch_size)
            self.taken.setdefault(row, []).append(item.map(to_cpu))


def denoisers_of(pipeline: Any, names: Sequence[str] = (DENOISER,)) -> dict[str, nn.Module]:
    """The pipeline's denoisers of these component names that are there."""
    found = {name: getattr(pipeline, name, None) for name in names}
    return {name: module for name, module in found.items() if isinstance(module, nn.Module)}


def to_cpu(leaf: Any) -> Any:
    """A copy of a tensor on the CPU; anything else as it is."""
    return leaf.detach().to("cpu", copy=True) if isinstance(leaf, Tensor) else leaf


def _without_values(leaf: Any) -> Any:
    return leaf.detach().to("meta") if isinstance(leaf, Tensor) else leaf


def _num_steps(pipeline: Any) -> int:
    """Denoising steps of the run, from the schedule that the pipeline has just set."""
    timesteps = getattr(getattr(pipeline, "scheduler", None), "timesteps", None)
    if not isinstance(timesteps, Tensor) or not len(timesteps):
        raise ModelError(
            f"{type(pipeline).__name__} has no scheduler.timesteps to count its steps by; run it "
            "yourself inside `with ditprune.recorded(denoiser)`"
        )
    return len(torch.unique_consecutive(timesteps))  # some schedules take a step in two calls


def _timestep(denoiser: nn.Module, call: Call) -> tuple[str | None, Any]:
    """The name and the value of the denoiser's timestep, given by name or by position."""
    try:
        bound = inspect.signature(denoiser.forward).bind_partial(*call.args, **call.kwargs)
        given = bound.arguments | bound.arguments.get("kwargs", {})
    except TypeError:  # a wrapped forward whose signature says nothing
        given = dict(call.kwargs)
    return next(((n, given[n]) for n in _TIMESTEP if given.get(n) is not None), (None, None))


def moment_of(denoiser: nn.Module, call: Call) -> tuple[float, float] | None:
    """The smallest and the largest timestep of a call; None where it has none."""
    _, timestep = _timestep(denoiser, call)
    return None if timestep is None else _extremes(timestep)


def _extremes(timestep: Any) -> tuple[float, float]:
    """A timestep per batch, item or token as two numbers that change when any of them does."""
    if not isinstance(timestep, Tensor):
        return float(timestep), float(timestep)
    return timestep.min().item(), timestep.max().item()
