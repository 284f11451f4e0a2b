"""What do a denoiser and its layers get when they are called? Seen by hooks, always removed."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar

from torch import Tensor, nn

from ditprune.calls import Call
from ditprune.checkpoints.locate import names_denoiser
from ditprune.denoiser.replay import as_written
from ditprune.denoisers import DENOISER
from ditprune.errors import ModelError
from ditprune.targets.wrapped import unwrapped

Key = TypeVar("Key", bound=Hashable)

_TIMESTEP_NAMES = ("timestep", "timesteps", "t")


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


def timestep_of(denoiser: nn.Module, call: Call) -> tuple[str | None, Any]:
    """The name and the value of the timestep in a call, passed by name or by position."""
    try:
        bound = inspect.signature(denoiser.forward).bind_partial(*call.args, **call.kwargs)
        given = bound.arguments | bound.arguments.get("kwargs", {})
    except TypeError:  # a wrapped forward whose signature says nothing
        given = dict(call.kwargs)
    return next(((n, given[n]) for n in _TIMESTEP_NAMES if given.get(n) is not None), (None, None))


def moment_of(denoiser: nn.Module, call: Call) -> tuple[float, float] | None:
    """The smallest and the largest timestep of a call; None without a timestep."""
    _, timestep = timestep_of(denoiser, call)
    return None if timestep is None else _extremes(timestep)


def _extremes(timestep: Any) -> tuple[float, float]:
    """Two numbers that change when the timestep of the batch, of an item or of a token changes."""
    if not isinstance(timestep, Tensor):
        return float(timestep), float(timestep)
    return timestep.min().item(), timestep.max().item()
