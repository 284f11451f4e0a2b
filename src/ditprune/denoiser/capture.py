"""What do a denoiser and its layers get when they are called? Seen by hooks, always removed."""

from __future__ import annotations

import functools
import inspect
import re
import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ditprune.calls import Call
from ditprune.checkpoints.locate import names_denoiser
from ditprune.denoiser.replay import as_written
from ditprune.denoiser.rows import num_rows, take_item
from ditprune.denoisers import DENOISER
from ditprune.errors import ModelError
from ditprune.targets.wrapped import unwrapped

Key = TypeVar("Key", bound=Hashable)

_TIMESTEP_NAMES = ("timestep", "timesteps", "t")
_LARGEST_SHARE = 1.5  # a larger timestep counts from 0 to 1000, a smaller one from 0 to 1


@contextmanager
def hooked(
    modules: Mapping[Key, nn.Module], see: Callable[[Key, nn.Module, Call], None]
) -> Iterator[None]:
    """While the block runs, `see(key, module, call)` is called before each call of a module."""

    def hook_of(key: Key) -> Callable[..., None]:
        return lambda module, args, kwargs: see(key, module, Call(args, kwargs))

    with ExitStack() as stack:
        for key, module in modules.items():
            handle = module.register_forward_pre_hook(hook_of(key), with_kwargs=True)
            stack.callback(handle.remove)
        yield


def input_of(call: Call) -> Tensor:
    """The input of a Linear or a convolution, passed by position or by name."""
    return call.args[0] if call.args else call.kwargs["input"]


@contextmanager
def counting_tokens(layers: Mapping[Key, nn.Module]) -> Iterator[dict[Key, list[int]]]:
    """Count the tokens that each layer gets in each of its calls while the block runs.

    Args:
        layers: Linears, or pointwise convolutions, for which each position is a token; by any key.
    """
    counts: dict[Key, list[int]] = {key: [] for key in layers}

    def count(key: Key, layer: nn.Module, call: Call) -> None:
        weight: Any = layer.weight
        counts[key].append(input_of(call).numel() // weight.shape[1])

    with hooked(layers, count):
        yield counts


@contextmanager
def recorded(denoiser: nn.Module) -> Iterator[list[Call]]:
    """Record the calls that a denoiser gets while the block runs, in order, on the CPU.

        with ditprune.recorded(pipe.transformer) as calls:
            pipe([3, 7], num_inference_steps=2)
        stats = ditprune.calibrate(pipe, calls)

    This is for pipelines that need more than a prompt: run the pipeline inside the block, then
    pass the list to `ditprune.calibrate`. All calls are kept, so run few steps of few images.
    Methods that call `denoiser.forward` themselves, as for guidance, are heard too.

    Raises ModelError at the end of the block if there was no call.
    """
    if not isinstance(denoiser, nn.Module):
        raise ModelError(
            f"recorded: {type(denoiser).__name__} given, expected a denoiser, as in "
            "recorded(pipe.transformer)"
        )
    calls: list[Call] = []
    with as_written(), _heard(denoiser, lambda call: calls.append(call.map(to_cpu))):
        yield calls
    if not calls:
        raise ModelError(
            f"recorded: {type(denoiser).__name__} was not called in the block, neither itself nor "
            "its forward; run the pipeline inside the block, and record the module that it calls"
        )


@contextmanager
def _heard(denoiser: nn.Module, see: Callable[[Call], None]) -> Iterator[None]:
    """While the block runs, `see(call)` is called before each outermost run of a forward."""
    if isinstance(denoiser, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        with hooked({"": denoiser}, lambda _key, _module, call: see(call)):
            yield
        return
    module = unwrapped(denoiser)
    forward, is_replaced, depth = module.forward, "forward" in vars(module), 0

    @functools.wraps(forward)
    def heard(*args: Any, **kwargs: Any) -> Any:
        nonlocal depth
        if not depth:
            see(Call(args, kwargs))
        depth += 1
        try:
            return forward(*args, **kwargs)
        finally:
            depth -= 1

    module.forward = heard
    try:
        yield
    finally:
        if is_replaced:
            module.forward = forward
        else:
            del module.forward


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
    """

    rows_per_image: int
    calls_per_step: int
    guidance_argument: bool
    timestep_argument: str | None
    timestep_scale: int | None
    timestep_falls: bool | None


class _Enough(BaseException):
    """Ends a sampling run after the last step that is wanted; no pipeline catches it."""


class StepRecorder:
    """Keeps the calls of given items at given steps of one sampling run, and ends the run early.

    Args:
        pipeline: has `scheduler.timesteps` while it runs.
        denoisers: the denoisers of the pipeline by component name.
        batch_size: the number of items in the run.
        wanted: for a number of steps, the items (rows of the batch) to keep at each step.
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
        """Run the pipeline. Raises ModelError if it did not reach all steps that are wanted."""
        try:
            with hooked(self._denoisers, self._see):
                run()
        except _Enough:
            if hasattr(self._pipeline, "maybe_free_model_hooks"):
                self._pipeline.maybe_free_model_hooks()
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

    def _see(self, name: str, module: nn.Module, call: Call) -> None:
        if self._step < 0:
            self.num_steps = _num_steps(self._pipeline)
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


def denoisers_of(pipeline: Any, names: Sequence[str] | None = None) -> dict[str, nn.Module]:
    """The denoisers of a pipeline among these component names; missing ones are left out.

    Without names, they are the components called `transformer…`, and those whose class is a
    denoiser of diffusers.
    """
    if names is None:
        names = [name for name, part in pipeline.components.items() if _is_denoiser(name, part)]
    components = {name: getattr(pipeline, name, None) for name in names}
    return {name: module for name, module in components.items() if isinstance(module, nn.Module)}


def _is_denoiser(name: str, component: Any) -> bool:
    kind = type(component)
    is_known = kind.__module__.split(".")[0] == "diffusers" and names_denoiser(kind.__name__)
    return is_known or re.fullmatch(rf"{DENOISER}(_\d+)?", name) is not None


def to_cpu(leaf: Any) -> Any:
    """A copy of a tensor on the CPU; anything else as it is."""
    return leaf.detach().to("cpu", copy=True) if isinstance(leaf, Tensor) else leaf


def _without_values(leaf: Any) -> Any:
    return leaf.detach().to("meta") if isinstance(leaf, Tensor) else leaf


def _num_steps(pipeline: Any) -> int:
    """The denoising steps of the run, from the schedule that the pipeline has just set."""
    timesteps = getattr(getattr(pipeline, "scheduler", None), "timesteps", None)
    if not isinstance(timesteps, Tensor) or not len(timesteps):
        raise ModelError(
            f"{type(pipeline).__name__} has no scheduler.timesteps to count its steps by; run it "
            "yourself inside `with ditprune.recorded(denoiser)`"
        )
    return len(torch.unique_consecutive(timesteps))  # some schedules take a step in two calls


def _timestep(denoiser: nn.Module, call: Call) -> tuple[str | None, Any]:
    """The name and the value of the timestep in a call, passed by name or by position."""
    try:
        bound = inspect.signature(denoiser.forward).bind_partial(*call.args, **call.kwargs)
        given = bound.arguments | bound.arguments.get("kwargs", {})
    except TypeError:  # a wrapped forward whose signature says nothing
        given = dict(call.kwargs)
    return next(((n, given[n]) for n in _TIMESTEP_NAMES if given.get(n) is not None), (None, None))


def moment_of(denoiser: nn.Module, call: Call) -> tuple[float, float] | None:
    """The smallest and the largest timestep of a call; None without a timestep."""
    _, timestep = _timestep(denoiser, call)
    return None if timestep is None else _extremes(timestep)


def _extremes(timestep: Any) -> tuple[float, float]:
    """Two numbers that change when the timestep of the batch, of an item or of a token changes."""
    if not isinstance(timestep, Tensor):
        return float(timestep), float(timestep)
    return timestep.min().item(), timestep.max().item()
