"""Which steps does a sampling run take, and which calls of the denoiser belong to each?"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ditprune.calls import Call
from ditprune.denoiser.capture import hooked, moment_of, timestep_of, to_cpu
from ditprune.denoiser.rows import num_rows, take_item
from ditprune.errors import ModelError

_NUM_TIMESTEPS = "_num_timesteps"  # an attribute that diffusers' pipelines set before they loop
_LARGEST_SHARE = 1.5  # a larger timestep counts from 0 to 1000, a smaller one from 0 to 1


@dataclass(frozen=True)
class Style:
    """How a pipeline calls its denoiser.

    Args:
        rows_per_image: 2 if guidance stacks the conditional and the unconditional input.
        calls_per_step: 2 if guidance calls the denoiser twice.
        guidance_argument: whether the denoiser gets the guidance scale as an argument.
        timestep_argument: the name of the timestep; None if the denoiser gets no timestep.
        timestep_scale: 1000 or 1, the largest timestep; None without a timestep.
        timestep_falls: whether the timestep falls from noise to image.
        num_steps: of a whole run.
    """

    rows_per_image: int
    calls_per_step: int
    guidance_argument: bool
    timestep_argument: str | None
    timestep_scale: int | None
    timestep_falls: bool | None
    num_steps: int


class _Enough(BaseException):
    """Ends a sampling run after the last step that is wanted; no pipeline catches it."""


class StepRecorder:
    """Keeps the calls of given items at given steps of one sampling run, and ends the run early.

    Args:
        pipeline: has `scheduler.timesteps` while it runs.
        denoisers: the denoisers of the pipeline by component name.
        batch_size: the number of items in the run.
        choose: for a number of steps, the items (rows of the batch) to keep at each step.
    """

    def __init__(
        self,
        pipeline: Any,
        denoisers: Mapping[str, nn.Module],
        batch_size: int,
        choose: Callable[[int], Mapping[int, Sequence[int]]],
    ) -> None:
        self._pipeline, self._denoisers, self._batch_size = pipeline, denoisers, batch_size
        self._choose = choose
        self._begin()

    def _begin(self, num_steps: int = 0) -> None:
        """Forget what was seen. The number of steps is 0 where the run is to say it."""
        self.taken: dict[int, list[Call]] = {}
        self.num_steps = num_steps
        self.started_s: list[float] = []  # when each step began
        self._wanted = dict[int, Sequence[int]]()
        self._step = -1
        self._moment: tuple[float, float] | None = None
        self._calls_in_step: list[int] = []
        self._first: tuple[Call, nn.Module] | None = None
        self._timesteps: list[float] = []
        self._num_rows = 0

    def record(self, run: Callable[[], Any]) -> None:
        """Run the pipeline; again, where it took fewer steps than its schedule has timesteps.

        Raises ModelError if it did not reach all steps that are wanted.
        """
        self._run(run)
        num_steps = self._step + 1
        if self._missing() and 0 < num_steps < self.num_steps:
            self._begin(num_steps)
            self._run(run)
        if not num_steps or self._missing():
            raise ModelError(
                f"{type(self._pipeline).__name__} called its denoiser at {self._step + 1} of "
                f"{self.num_steps} steps; run it yourself inside `with ditprune.recorded(denoiser)`"
            )

    def _run(self, run: Callable[[], Any]) -> None:
        if hasattr(self._pipeline, _NUM_TIMESTEPS):
            setattr(self._pipeline, _NUM_TIMESTEPS, None)  # of a run before
        try:
            with hooked(self._denoisers, self._see):
                run()
        except _Enough:
            if hasattr(self._pipeline, "maybe_free_model_hooks"):
                self._pipeline.maybe_free_model_hooks()

    def _missing(self) -> set[int]:
        return set().union(*map(set, self._wanted.values())) - self.taken.keys()

    def style(self) -> Style:
        """How the denoiser was called, as far as this run went."""
        assert self._first is not None
        call, denoiser = self._first
        name, _ = timestep_of(denoiser, call)
        largest = max(self._timesteps, default=0.0)
        return Style(
            self._num_rows // self._batch_size,
            self._calls_in_step[0],
            any("guidance" in n and v is not None for n, v in call.kwargs.items()),
            name,
            None if name is None else 1 if largest <= _LARGEST_SHARE else 1000,
            None if name is None or len(self._timesteps) < 2
            else self._timesteps[-1] < self._timesteps[0],
            self.num_steps,
        )  # fmt: skip

    def _see(self, name: str, module: nn.Module, call: Call) -> None:
        if self._step < 0:
            self.num_steps = self.num_steps or _num_steps(self._pipeline)
            self._wanted = dict(self._choose(self.num_steps))
            self._num_rows = num_rows(call)
            self._first = (Call(call.args, call.kwargs).map(_without_values), module)
        moment = moment_of(module, call)
        # Two calls at one timestep (conditional, then unconditional) are one step.
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
        progress_t = (self._step + 0.5) / self.num_steps
        for row in self._wanted.get(self._step, ()):
            item = take_item(Call(call.args, call.kwargs, progress_t, name), row, self._batch_size)
            self.taken.setdefault(row, []).append(item.map(to_cpu))


def _without_values(leaf: Any) -> Any:
    return leaf.detach().to("meta") if isinstance(leaf, Tensor) else leaf


def _num_steps(pipeline: Any) -> int:
    """The denoising steps of the run, from the schedule that the pipeline has just set.

    Some pipelines drop timesteps of it, as the last one, and say how many are left.
    """
    timesteps = getattr(getattr(pipeline, "scheduler", None), "timesteps", None)
    if not isinstance(timesteps, Tensor) or not len(timesteps):
        raise ModelError(
            f"{type(pipeline).__name__} has no scheduler.timesteps to count its steps by; run it "
            "yourself inside `with ditprune.recorded(denoiser)`"
        )
    taken = getattr(pipeline, _NUM_TIMESTEPS, None)
    if isinstance(taken, int) and 0 < taken < len(timesteps):
        timesteps = timesteps[:taken]
    return len(torch.unique_consecutive(timesteps))  # some schedules take a step in two calls
