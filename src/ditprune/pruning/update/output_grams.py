"""How does a denoiser's output follow the outputs of its layers? By gradients of random sums.

With r random signs and g = Jᵀr the gradient of r · output, E‖J·Δy‖² is about Σ g² Δy² over the
tokens t and channels o of a layer's output y, for errors Δy that are independent of each other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Float64
from torch import Tensor, nn

from ditprune.calls import Call
from ditprune.denoiser.capture import input_of
from ditprune.errors import StatisticsError
from ditprune.method.statistics.gram import Gram, start_gram, update_gram
from ditprune.pruning.update.gradients import outside_inference, prediction_of, training
from ditprune.targets.matrix import channels_last

# What sees the inputs [T, C_in] and the gradients [T, C_out] of a layer in a call.
See = Callable[[str, Tensor, Tensor, Call], None]


@dataclass(frozen=True, eq=False)
class OutputGram:
    """Σ_t a_t x_t x_tᵀ, a_t = mean_o g_to², and Σ_t g_to² of every output channel."""

    gram: Gram
    sum_squares: Float64[Tensor, " out"]


def output_gains(
    denoiser: nn.Module, names: Sequence[str], calls: Sequence[Call]
) -> dict[str, float]:
    """The mean of g² over each layer's output. With it ‖J·Δy‖² is about gain · ‖Δy‖²."""
    sums, counts = dict.fromkeys(names, 0.0), dict.fromkeys(names, 0)

    def see(name: str, _tokens: Tensor, gradient: Tensor, _call: Call) -> None:
        sums[name] += gradient.double().square().sum().item()
        counts[name] += gradient.numel()

    output_gradients(denoiser, names, calls, see)
    gains = {name: sums[name] / counts[name] for name in names if counts[name]}
    # Nothing is known of a layer that no gradient reaches: it counts as the middle one.
    middle = sorted(gains.values())[len(gains) // 2] if gains else 0.0
    return {name: gains.get(name, middle) for name in names}


def collect_output_grams(
    denoiser: nn.Module, calls: Iterable[Call], names: Sequence[str],
    weight_of: Callable[[Call], float],
) -> dict[str, OutputGram]:  # fmt: skip
    """What E‖J·Δy‖² needs of each named layer; those that no gradient reaches are left out.

    g_to² is taken as a_t b_o, as K-FAC does (Martens and Grosse, arXiv 1503.05671): a Gram of
    weighted tokens, and a factor for each row of the weight.

    Args:
        weight_of: how much a call counts.

    Raises StatisticsError for NaN and Inf.
    """
    states: dict[str, OutputGram] = {}

    def see(name: str, tokens: Tensor, gradient: Tensor, call: Call) -> None:
        squares = gradient.double().square() * weight_of(call)
        state = states.get(name) or OutputGram(
            start_gram(tokens.shape[1], tokens.device), squares.new_zeros(squares.shape[1])
        )
        weights_T1 = squares.mean(1, keepdim=True).sqrt().float()
        gram = update_gram(state.gram, tokens.float() * weights_T1)
        states[name] = OutputGram(gram, state.sum_squares + squares.sum(0))

    output_gradients(denoiser, names, calls, see)
    for name, state in states.items():
        if not (state.gram.sum_products.isfinite().all() and state.sum_squares.isfinite().all()):
            raise StatisticsError(
                f"{name}: its calibration inputs or gradients hold NaN or Inf; look at the "
                "batches, or run the denoiser in float32 or bfloat16"
            )
    return states


def output_gradients(
    denoiser: nn.Module, names: Sequence[str], calls: Iterable[Call], see: See, seed: int = 0
) -> None:
    """Show the inputs and gradients of each named layer: a forward and a backward pass a call."""
    generator = torch.Generator().manual_seed(seed)
    current: list[Call] = []

    def watch(name: str) -> Any:
        def hook(layer: nn.Module, args: Any, kwargs: Any, output: Tensor) -> Tensor:
            output = output if output.requires_grad else output.requires_grad_()
            tokens = _as_tokens(layer, input_of(Call(args, kwargs))).detach()
            call = current[0]

            def show(gradient: Tensor) -> None:
                see(name, tokens, _as_tokens(layer, gradient), call)

            output.register_hook(show)
            return output

        return hook

    handles = [
        denoiser.get_submodule(name).register_forward_hook(watch(name), with_kwargs=True)
        for name in names
    ]
    try:
        with training(denoiser, ()), torch.enable_grad():
            for call in calls:
                current[:] = outside_inference([call])
                given = prediction_of(denoiser, current[0])
                torch.stack([_signed(output, generator) for _, output in given]).sum().backward()
    finally:
        for handle in handles:
            handle.remove()


def _as_tokens(layer: nn.Module, values: Tensor) -> Tensor:
    values = channels_last(layer, values)
    return values.reshape(-1, values.shape[-1])


def _signed(output: Float[Tensor, "..."], generator: torch.Generator) -> Tensor:
    signs = torch.randint(0, 2, output.shape, generator=generator).to(output) * 2 - 1
    return (output * signs).sum()
