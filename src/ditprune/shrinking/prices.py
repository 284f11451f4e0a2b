"""What does a denoiser cost, in multiplications, parameters and bytes, and what each unit?"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor, nn

from ditprune.calls import Call
from ditprune.denoiser.replay import run_call
from ditprune.method.low_rank import LowRankFit
from ditprune.shrinking.units import Cut, UnitGroup

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True)
class Size:
    """Of a denoiser.

    Args:
        num_macs: multiplications of one call with weights of Linears and convolutions.
        num_bytes: of its parameters and stored buffers in the dtypes that they have.
    """

    num_macs: int
    num_parameters: int
    num_bytes: int

    def plus(self, other: Size, times: int = 1) -> Size:
        """With so many times the other."""
        return Size(
            self.num_macs + times * other.num_macs,
            self.num_parameters + times * other.num_parameters,
            self.num_bytes + times * other.num_bytes,
        )


NOTHING = Size(0, 0, 0)


@dataclass(frozen=True, eq=False)
class Prices:
    """How often each weight is multiplied in a call, and the shapes and bytes of all tensors.

    Args:
        uses: by weight, tokens or positions that it meets in a call.
        shapes: of parameters and buffers.
        itemsizes: bytes of a number.
        parameters: the names that are parameters.
    """

    uses: Mapping[str, int]
    shapes: Mapping[str, tuple[int, ...]]
    itemsizes: Mapping[str, int]
    parameters: frozenset[str]

    @classmethod
    def of(cls, denoiser: nn.Module, call: Call) -> Prices:
        """From a run of a call."""
        parameters = dict(denoiser.named_parameters())
        tensors: dict[str, Tensor] = denoiser.state_dict()  # without buffers that are not stored
        return cls(
            _uses(denoiser, call),
            {name: tuple(tensor.shape) for name, tensor in tensors.items()},
            {name: tensor.element_size() for name, tensor in tensors.items()},
            frozenset(parameters),
        )

    def size(self, cut: Cut | None = None) -> Size:
        """Of the denoiser, or of what a cut leaves."""
        shapes = self.shapes if cut is None else {
            name: cut.shape(name, shape) for name, shape in self.shapes.items()
        }  # fmt: skip
        numbers = {name: prod(shape) for name, shape in shapes.items()}
        return Size(
            sum(numbers[name] * uses for name, uses in self.uses.items()),
            sum(numbers[name] for name in self.parameters),
            sum(count * self.itemsizes[name] for name, count in numbers.items()),
        )

    def saved(self, fits: Mapping[str, LowRankFit]) -> Size:
        """What layers lose that become two each."""
        macs = parameters = num_bytes = 0
        for name, fit in fits.items():
            before = {n: prod(self.shapes[n]) for n in self.shapes if n.startswith(f"{name}.")}
            uses = max(self.uses.get(tensor, 0) for tensor in before)
            size = fit.num_weights + fit.bias.numel()
            macs += uses * (fit.num_before - fit.num_weights)
            parameters += sum(before.values()) - size
            num_bytes += sum(count * self.itemsizes[n] for n, count in before.items())
            num_bytes -= size * max(self.itemsizes[n] for n in before)
        return Size(macs, parameters, num_bytes)

    def of_unit(self, group: UnitGroup, price: str) -> float:
        """The price of one unit of a group, in `macs` or `parameters`."""
        total = 0.0
        for part in group.parts:
            count = prod(self.shapes[part.tensor]) // self.shapes[part.tensor][part.dim]
            count *= part.places.shape[1]
            if price == "parameters":
                total += count if part.tensor in self.parameters else 0
            else:
                total += count * self.uses.get(part.tensor, 0)
        return total

    def of_groups(self, groups: Iterable[UnitGroup], price: str) -> float:
        """The price of all units of these groups."""
        return sum(group.num_units * self.of_unit(group, price) for group in groups)


@torch.no_grad()
def _uses(denoiser: nn.Module, call: Call) -> dict[str, int]:
    """By weight, how many tokens a Linear gets, or positions a convolution gives, in a call."""
    layers: dict[str, nn.Module] = {
        name: module
        for name, module in denoiser.named_modules()
        if isinstance(module, (nn.Linear, *_CONVOLUTIONS))
    }
    uses: dict[str, int] = {}

    def see(name: str, output: Tensor) -> None:
        channels = output.shape[1] if isinstance(layers[name], _CONVOLUTIONS) else output.shape[-1]
        weight = f"{name}.weight"
        uses[weight] = uses.get(weight, 0) + output.numel() // channels

    handles = [
        layer.register_forward_hook(lambda _m, _a, output, name=name: see(name, output))
        for name, layer in layers.items()
    ]
    try:
        run_call(denoiser, call)
    finally:
        for handle in handles:
            handle.remove()
    return uses
