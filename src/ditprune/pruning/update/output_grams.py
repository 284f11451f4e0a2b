"""How does a denoiser's output follow the outputs of its layers? By gradients of random sums.

With r random signs and g = Jᵀr the gradient of r · output, E‖J·Δy‖² is about Σ g² Δy² over the
tokens t and channels o of a layer's output y, for errors Δy that are independent of each other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Float64
from torch import Tensor, nn

from ditprune.calls import Call
from ditprune.denoiser.capture import input_of
from ditprune.denoiser.replay import predicted
from ditprune.errors import StatisticsError
from ditprune.method.statistics.gram import Gram, start_gram, update_gram
from ditprune.pruning.update.gradients import outside_inference, training
from ditprune.targets.matrix import channels_last

# What sees the inputs [T, C_in] and the gradients [T, C_out] of a layer in a call.
See = Callable[[str, Tensor, Tensor, Call], object]


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
    grams = OutputGrams(weight_of)
    output_gradients(denoiser, names, calls, grams.add)
    grams.check_finite()
    return grams.states


class OutputGrams:
    """Those of several layers, as inputs and gradients are added."""

    def __init__(self, weight_of: Callable[[Call], float]) -> None:
        self.states: dict[str, OutputGram] = {}
        self._weight_of = weight_of

    def add(self, name: str, tokens: Tensor, gradient: Tensor, call: Call) -> Tensor:
        """Returns √a_t of every token, [T, 1]."""
        squares = gradient.double().square() * self._weight_of(call)
        state = self.states.get(name) or OutputGram(
            start_gram(tokens.shape[1], tokens.device), squares.new_zeros(squares.shape[1])
        )
        roots_T1 = squares.mean(1, keepdim=True).sqrt().float()
        gram = update_gram(state.gram, tokens.float() * roots_T1)
        self.states[name] = OutputGram(gram, state.sum_squares + squares.sum(0))
        return roots_T1

    def check_finite(self) -> None:
        """Raises StatisticsError for NaN and Inf."""
        for name, state in self.states.items():
            if not (
                state.gram.sum_products.isfinite().all() and state.sum_squares.isfinite().all()
            ):
                raise StatisticsError(
                    f"{name}: its calibration inputs or gradients hold NaN or Inf; look at the "
                    "batches, or run the denoiser in float32 or bfloat16"
                )


def output_gradients(
    denoiser: nn.Module, names: Sequence[str], calls: Iterable[Call], see: See, seed: int = 0
) -> None:
    """Show the inputs and gradients of each named layer: a forward and a backward pass a call."""
    signed, current = signed_sum(seed), list[Call]()

    def begin(name: str, tokens: Tensor) -> Callable[[Tensor], object]:
        return lambda gradient: see(name, tokens, gradient, current[0])

    with watching_gradients(denoiser, names, begin), training(denoiser, ()), torch.enable_grad():
        for call in calls:
            current[:] = outside_inference([call])
            signed(denoiser(*current[0].args, **current[0].kwargs), current[0]).backward()


@contextmanager
def watching_gradients(
    denoiser: nn.Module, names: Sequence[str],
    begin: Callable[[str, Tensor], Callable[[Tensor], object]],
) -> Iterator[None]:  # fmt: skip
    """While the block runs, `begin(name, tokens)` is called with the inputs [T, C_in] in each
    forward of a layer; what it returns, with the gradient [T, C_out] where one comes back.
    """

    def watch(name: str) -> Any:
        def hook(layer: nn.Module, args: Any, kwargs: Any, output: Tensor) -> Tensor:
            output = output if output.requires_grad else output.requires_grad_()
            show = begin(name, as_tokens(layer, input_of(Call(args, kwargs))).detach())

            def pass_on(gradient: Tensor) -> None:  # what a hook returns would take its place
                show(as_tokens(layer, gradient))

            output.register_hook(pass_on)
            return output

        return hook

    with ExitStack() as stack:
        for name in names:
            layer = denoiser.get_submodule(name)
            handle = layer.register_forward_hook(watch(name), with_kwargs=True)
            stack.callback(handle.remove)
        yield


def signed_sum(seed: int = 0) -> Callable[[Any, Call], Tensor]:
    """The sum of the prediction in an output with random signs, new ones for every call."""
    generator = torch.Generator().manual_seed(seed)

    def signed(output: Any, call: Call) -> Tensor:
        return torch.stack([_signed(part, generator) for _, part in predicted(output, call)]).sum()

    return signed


def as_tokens(layer: nn.Module, values: Tensor) -> Tensor:
    """What enters or leaves a layer, [T, C]."""
    values = channels_last(layer, values)
    return values.reshape(-1, values.shape[-1])


def _signed(output: Float[Tensor, "..."], generator: torch.Generator) -> Tensor:
    signs = torch.randint(0, 2, output.shape, generator=generator).to(output) * 2 - 1
    return (output * signs).sum()
