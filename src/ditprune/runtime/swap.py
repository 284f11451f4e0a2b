"""Which Linears of a denoiser run faster sparse? They are swapped, and can be swapped back.

No layer is assumed to gain. Each shape, sparsity and number of tokens is timed dense and sparse on
this machine, with torch's current number of threads, and with caches as cold as in a whole model.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from ditprune.calls import Call
from ditprune.denoiser.capture import counting_tokens
from ditprune.denoiser.replay import run_call
from ditprune.errors import KernelError
from ditprune.method.choices import as_globs
from ditprune.runtime.backends import Backend, backend_of
from ditprune.runtime.fused_gelu import fuse_, unfuse_
from ditprune.runtime.linears import Surroundings, linears, names_in, read_by
from ditprune.runtime.outputs import release
from ditprune.runtime.stand_in import StandIn
from ditprune.runtime.stopwatch import cold_buffer
from ditprune.targets.matrix import expected_shape
from ditprune.targets.wrapped import unwrapped
from ditprune.targets.writable import no_values
from ditprune.targets.writable import obstacle as unwritable

# Used without a call: the modulation of one guided image, and its tokens at 256².
NUM_TOKENS = (2, 512)
MIN_GAIN = 1.05  # less is noise
# For all timings: a few seconds where nothing else runs, and no hours beside other work.
LIMIT_S = 30.0


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
    limit_s: float = LIMIT_S,
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
        call: arguments of its forward, to learn how many tokens each layer gets, and whether a
            module reads weights in place of calling its layers. Without a call,
            each layer is timed with 2 and with 512 tokens, must gain over both together, and is
            stored as is best for 512. bfloat16 modulation may then be slower than dense, so pass
            a call if you can.
        backend: `cpu`, the kernel of ditprune for any zeros; without a C++ compiler it warns and
            leaves every layer dense. `semi-structured`, torch's kernels for 2:4 in half precision
            on NVIDIA GPUs.
        limit_s: seconds for all timings, 30 by default, past two runs of each.
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
    names = names_in(denoiser, as_globs("blocks", blocks))
    try:
        runner.check()
    except KernelError as error:
        if not runner.is_optional:
            raise
        warnings.warn(f"{error}; every layer stays dense", stacklevel=2)
        return {n: _decision(m, "no kernel") for n, m in linears(denoiser) if n in names}
    num_tokens = {} if call is None else _count_tokens(denoiser, call)
    around = Surroundings.of(denoiser)
    timed: dict[Any, _Times] = {}
    decisions = {}
    deadline = time.perf_counter() + limit_s
    for name in names:
        linear = cast(nn.Linear, denoiser.get_submodule(name))
        counts = NUM_TOKENS if call is None else num_tokens[name]
        reason = around.obstacle(linear, counts) or runner.obstacle(linear)
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
    if call is not None:
        decisions |= _put_back(denoiser, decisions, call)
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


def _put_back(
    denoiser: nn.Module, decisions: Mapping[str, Decision], call: Mapping[str, Any] | Call
) -> dict[str, Decision]:
    """Swap layers back whose weights the call reads; returns the decisions that change."""
    layers = {n: m for n, m in denoiser.named_modules() if isinstance(m, StandIn)}
    if not layers:
        return {}
    before = {name: layer.num_reads for name, layer in layers.items()}
    run_call(denoiser, call)
    changed = {}
    for name, layer in layers.items():
        if layer.num_reads > before[name] and name in decisions:
            denoiser.set_submodule(name, layer.to_linear())
            parent = denoiser.get_submodule(name.rpartition(".")[0])
            linear = cast(nn.Linear, denoiser.get_submodule(name))
            changed[name] = _decision(linear, read_by(type(parent).__name__))
    return changed


def _count_tokens(
    denoiser: nn.Module, call: Mapping[str, Any] | Call
) -> dict[str, tuple[int, ...]]:
    """The numbers of tokens that each Linear gets in a call."""
    with counting_tokens(dict(linears(denoiser))) as counts_of:
        run_call(denoiser, call)
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
    shape = expected_shape(linear) or (linear.out_features, linear.in_features)
    is_known = not (unwritable(linear) or no_values(linear))
    sparsity = share_of_zeros(linear.weight) if is_known else 0.0
    size_bytes = getattr(getattr(linear, "weight", None), "nbytes", 0)
    return Decision(shape, sparsity, *times, size_bytes, reason)


def share_of_zeros(weight: Tensor) -> float:
    """The share of weights that are zero."""
    return 1 - int(weight.count_nonzero()) / weight.numel()


def held_bytes(module: nn.Module) -> int:
    """The size of all parameters and buffers of a module."""
    return sum(tensor.nbytes for tensor in (*module.parameters(), *module.buffers()))
