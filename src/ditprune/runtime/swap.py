"""Which Linears of a denoiser run faster sparse? They are swapped, and can be swapped back.

No layer is assumed to gain. Each shape, sparsity and number of tokens is timed dense and sparse on
this machine, with torch's current number of threads, and with caches as cold as in a whole model.
"""

from __future__ import annotations

import math
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from ditprune.calls import Call
from ditprune.denoiser.capture import counting_tokens
from ditprune.errors import KernelError
from ditprune.method.choices import as_globs
from ditprune.runtime.backends import Backend, backend_of
from ditprune.runtime.fused_gelu import fuse_, unfuse_
from ditprune.runtime.outputs import release
from ditprune.runtime.stand_in import StandIn
from ditprune.runtime.stopwatch import cold_buffer
from ditprune.targets.blocks import find_blocks, join
from ditprune.targets.wrapped import is_adapted, unwrapped
from ditprune.targets.writable import no_values
from ditprune.targets.writable import obstacle as unwritable

# Used without a call: the modulation of one guided image, and its tokens at 256².
NUM_TOKENS = (2, 512)
MIN_GAIN = 1.05  # less is noise
UNDER_ADAPTER = (
    "under an adapter, or part of one; merge it and remove it (pipe.fuse_lora(), then "
    "pipe.unload_lora_weights()), and call sparsify_ again"
)


@dataclass(frozen=True)
class Decision:
    """The times of a Linear, and why it stays dense if it does.

    Args:
        shape: (C_out, C_in).
        sparsity: the share of zeros; 0 where the weight is no plain tensor with values.
        dense_s, sparse_s: the best time of one call by number of tokens; empty if not timed.
        size_bytes: of the weight as it is now.
        reason: why the layer stays dense; empty if it was swapped.
    """

    shape: tuple[int, int]
    sparsity: float
    dense_s: Mapping[int, float]
    sparse_s: Mapping[int, float]
    size_bytes: int
    reason: str

    @property
    def is_swapped(self) -> bool:
        return not self.reason


_Times = tuple[dict[int, float], dict[int, float]]  # dense and sparse, by number of tokens


def sparsify_(
    denoiser: nn.Module,
    call: Mapping[str, Any] | Call | None = None,
    backend: str | Backend = "cpu",
    limit_s: float = math.inf,
    blocks: str | Sequence[str] = (),
) -> dict[str, Decision]:
    """Replace each Linear that runs faster sparse, in place.

        decisions = ditprune.runtime.sparsify_(pruned_pipe.transformer, next(iter(calls)))
        print([name for name, decision in decisions.items() if not decision.reason])
        names = ditprune.runtime.desparsify_(pruned_pipe.transformer)

    On the CPU, the kernel also applies diffusers' GELU (approximated by tanh) that follows a sparse
    layer. The memory of up to two outputs larger than 32 MiB is kept for the next call, until
    `desparsify_`.

    Args:
        denoiser: any module, on the backend's device; layers that do not qualify are left alone.
        call: arguments of its forward, to learn how many tokens each layer gets. Without a call,
            each layer is timed with 2 and with 512 tokens, must gain over both together, and is
            stored as is best for 512. bfloat16 modulation may then be slower than dense, so pass
            a call if you can.
        backend: `cpu`, the kernel of ditprune for any zeros; without a C++ compiler it warns and
            leaves every layer dense. `semi-structured`, torch's kernels for 2:4 in half precision
            on NVIDIA GPUs.
        limit_s: seconds for all timings, past two runs of each.
        blocks: globs over module paths, as in `"double_blocks.*"`: only Linears inside modules that
            match are looked at; by default all of them.

    Returns:
        The decision on each Linear, by name.

    Raises:
        RecipeError: an unknown backend.
        TargetError: one of `blocks` matches no module.
        KernelError: `semi-structured` without a CUDA device.
    """
    denoiser, runner = unwrapped(denoiser), backend_of(backend)
    names = _names(denoiser, as_globs("blocks", blocks))
    try:
        runner.check()
    except KernelError as error:
        if not runner.is_optional:
            raise
        warnings.warn(f"{error}; every layer stays dense", stacklevel=2)
        return {n: _decision(m, "no kernel") for n, m in _linears(denoiser) if n in names}
    num_tokens = {} if call is None else _count_tokens(denoiser, call)
    uses = Counter(id(linear.weight) for _, linear in _linears(denoiser))
    adapted = _of_adapters(denoiser)
    timed: dict[Any, _Times] = {}
    decisions = {}
    deadline = time.perf_counter() + limit_s
    for name in names:
        linear = cast(nn.Linear, denoiser.get_submodule(name))
        counts = NUM_TOKENS if call is None else num_tokens[name]
        reason = adapted.get(name) or _obstacle(linear, uses[id(linear.weight)], counts)
        reason = reason or runner.obstacle(linear)
        if reason:
            decisions[name] = _decision(linear, reason)
            continue
        weight, sparsity = linear.weight, round(share_of_zeros(linear.weight), 2)
        key = (weight.shape, weight.dtype, sparsity, linear.bias is None, counts)
        if key not in timed:
            timed[key] = _time_both(linear, counts, runner, held_bytes(denoiser), deadline)
        reason = _why_slower(*timed[key], is_learnt=call is not None)
        decisions[name] = _decision(linear, reason, timed[key])
        if not reason:
            sparse = runner.sparse(linear, counts)
            decisions[name] = replace(decisions[name], size_bytes=sparse.size_bytes)
            denoiser.set_submodule(name, sparse)
    release()  # the outputs of the timings
    fuse_(denoiser)
    return decisions


def desparsify_(denoiser: nn.Module) -> list[str]:
    """Replace each sparse layer by the Linear it stands for, in place.

        ditprune.runtime.sparsify_(pruned_pipe.transformer, next(iter(calls)))
        names = ditprune.runtime.desparsify_(pruned_pipe.transformer)
        print(names)

    Returns the names of the layers.
    """
    denoiser = unwrapped(denoiser)
    layers = {n: m for n, m in denoiser.named_modules() if n and isinstance(m, StandIn)}
    for name, layer in layers.items():
        denoiser.set_submodule(name, layer.to_linear())
    unfuse_(denoiser)
    release()
    return list(layers)


def _names(denoiser: nn.Module, blocks: tuple[str, ...]) -> list[str]:
    """The names of the Linears that can be replaced, of all or of those in the blocks.

    A list of Linears would keep every dense weight in memory; a list of names does not.
    """
    if not blocks:
        return [name for name, _ in _linears(denoiser)]
    modules = [block.module for block in find_blocks(denoiser, blocks)]
    inside = {id(part) for module in modules for part in module.modules()}
    return [name for name, linear in _linears(denoiser) if id(linear) in inside]


def _linears(denoiser: nn.Module) -> Iterator[tuple[str, nn.Linear]]:
    """Every Linear that can be replaced, under each of its names; no subclasses of Linear."""
    for name, module in denoiser.named_modules(remove_duplicate=False):
        if name and type(module) is nn.Linear:
            yield name, module


def _of_adapters(denoiser: nn.Module) -> dict[str, str]:
    """Why layers under adapters, and the layers of adapters, stay dense, by name.

    Merging an adapter writes into the layer under it, and would write into a copy if it were
    sparse.
    """
    wrappers = {n: m for n, m in denoiser.named_modules() if is_adapted(m)}
    return {
        join(path, name): UNDER_ADAPTER
        for path, wrapper in wrappers.items()
        for name, part in wrapper.named_modules()
        if type(part) is nn.Linear
    }


def _obstacle(linear: nn.Linear, num_uses: int, counts: tuple[int, ...]) -> str:
    """Why no backend can swap a layer; empty if one can."""
    if num_uses > 1:
        return "its weight is shared"
    if reason := unwritable(linear) or no_values(linear):
        return reason
    if "forward" in vars(linear):
        return "its forward is replaced (by a hook of accelerate or diffusers)"
    if linear._forward_hooks or linear._forward_pre_hooks or linear._backward_hooks:
        return "it has hooks"
    if not counts:
        return "never called"
    return ""


def _count_tokens(
    denoiser: nn.Module, call: Mapping[str, Any] | Call
) -> dict[str, tuple[int, ...]]:
    """The numbers of tokens that each Linear gets in a call."""
    call = Call.of(call)
    with counting_tokens(dict(_linears(denoiser))) as counts_of, torch.no_grad():
        denoiser(*call.args, **call.kwargs)
    return {name: tuple(sorted(set(counts))) for name, counts in counts_of.items()}


def _time_both(
    linear: nn.Linear, counts: tuple[int, ...], runner: Backend, model_bytes: int, deadline: float
) -> _Times:
    """Seconds by number of tokens, dense and sparse, with caches as cold as in the model."""
    sparse, weight = runner.sparse(linear, counts), linear.weight
    cold = cold_buffer(model_bytes, str(weight.device))
    dense_s, sparse_s = {}, {}
    with torch.no_grad():
        for count in counts:
            inputs = torch.ones(count, linear.in_features, dtype=weight.dtype, device=weight.device)
            works = [lambda x=inputs: linear(x), lambda x=inputs: sparse(x)]
            left_s = max(0.0, deadline - time.perf_counter())
            dense_s[count], sparse_s[count] = runner.seconds(
                works, str(weight.device), cold, left_s
            )
    return dense_s, sparse_s


def _why_slower(
    dense_s: Mapping[int, float], sparse_s: Mapping[int, float], is_learnt: bool
) -> str:
    """Why a layer does not gain over all its numbers of tokens together; empty if it does.

    Args:
        is_learnt: whether the numbers of tokens come from a call.
    """
    gain = sum(dense_s.values()) / sum(sparse_s.values())
    if gain >= MIN_GAIN:
        return ""
    counts = " and ".join(map(str, dense_s))
    advice = "" if is_learnt else "; pass a call to time it with its own number"
    return f"{gain:.2f}× as fast with {counts} tokens{advice}"


def _decision(linear: nn.Linear, reason: str, times: _Times = ({}, {})) -> Decision:
    weight, shape = linear.weight, (linear.out_features, linear.in_features)
    is_known = not (unwritable(linear) or no_values(linear))
    sparsity = share_of_zeros(weight) if is_known else 0.0
    return Decision(shape, sparsity, *times, weight.nbytes, reason)


def share_of_zeros(weight: Tensor) -> float:
    """The share of weights that are zero."""
    return 1 - int(weight.count_nonzero()) / weight.numel()


def held_bytes(module: nn.Module) -> int:
    """The size of all parameters and buffers of a module."""
    return sum(tensor.nbytes for tensor in (*module.parameters(), *module.buffers()))
