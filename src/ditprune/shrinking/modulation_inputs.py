"""What does modulation get, for many pairs of timestep and condition, at little cost?

It does not depend on the latents, so a forward stops at the last layer of a block that is asked
for. What is the same from block to block is sampled once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn

from ditprune.calls import Call
from ditprune.denoiser.blockwise.chain import Chain
from ditprune.denoiser.capture import input_of
from ditprune.denoiser.layout import RowLayout
from ditprune.denoiser.replay import evaluating
from ditprune.denoiser.rows import num_rows, take_rows
from ditprune.errors import ModelError, TargetError
from ditprune.method.low_rank import InputSpread
from ditprune.shrinking.pairs import ASIDE, FIT, NUM_PAIRS, Pairs

UNCALLED = "no calibration call runs it"
PER_TOKEN = "it gets more than one row for each item"
OF_LATENTS = "what it gets depends on the latents"


@dataclass(frozen=True, eq=False)
class ModulationSource:
    """What some layers get.

    Args:
        seen: in a call to try, by which layers with the same inputs are known.
        spread: of the pairs to fit.
        aside: inputs of other pairs, [N, C_in].
    """

    seen: Sequence[Tensor]
    spread: InputSpread
    aside: Tensor


class ModulationInputs:
    """Takes the blocks of a denoiser one after another.

    Args:
        chain: of the blocks; without it the denoiser runs up to the block.
        layout: takes calls apart and puts them together; without it they are run as they are.
    """

    def __init__(
        self, denoiser: nn.Module, calls: Sequence[Call], chain: Chain | None = None,
        layout: RowLayout | None = None, num_pairs: int = NUM_PAIRS,
    ) -> None:  # fmt: skip
        self._denoiser, self._chain = denoiser, chain
        self._new_pairs = partial(Pairs, denoiser, calls, layout, num_pairs)
        self._tries = _tries(calls[0], layout)
        self._sources: list[ModulationSource] = []
        self._counts: dict[Any, dict[str, int]] = {}

    @cached_property
    def _pairs(self) -> Pairs:
        return self._new_pairs()

    def of_block(
        self, block: str, names: Sequence[str]
    ) -> tuple[dict[str, ModulationSource], dict[str, str]]:
        """What these layers of a block get, whose weights are there; and why some are no
        modulation. Raises TargetError for NaN or Inf.
        """
        with evaluating(self._denoiser):
            seen, whole = self._try(block, names)
            return self._sources_of(block, seen), whole

    def _try(
        self, block: str, names: Sequence[str]
    ) -> tuple[dict[str, Sequence[Tensor]], dict[str, str]]:
        """What layers get in a call to try, and why some are no modulation."""
        first, other = self._tries
        kind = type(self._denoiser.get_submodule(block)), tuple(n[len(block) :] for n in names)
        seen = self._inputs(block, names, first, self._counts.get(kind))
        self._counts[kind] = {name[len(block) :]: len(inputs) for name, inputs in seen.items()}
        again = self._inputs(block, names, other, self._counts[kind])
        whole = {}
        for name in names:
            layer: Any = self._denoiser.get_submodule(name)
            if name not in seen:
                whole[name] = UNCALLED
            elif any(x.numel() != num_rows(first) * layer.in_features for x in seen[name]):
                whole[name] = PER_TOKEN
            elif not all(map(torch.equal, seen[name], again.get(name, ()))):
                whole[name] = OF_LATENTS
        return {name: x for name, x in seen.items() if name not in whole}, whole

    def _sources_of(
        self, block: str, seen: Mapping[str, Sequence[Tensor]]
    ) -> dict[str, ModulationSource]:
        """By layer; those that are not known from the block before are sampled."""
        known = {name: _like(inputs, self._sources) for name, inputs in seen.items()}
        firsts: dict[str, Sequence[Tensor]] = {}
        for name, inputs in seen.items():
            if known[name] is None and not any(_same(inputs, x) for x in firsts.values()):
                firsts[name] = inputs
        new = self._sampled(block, firsts) if firsts else []
        sources = {name: known[name] or _like(inputs, new) for name, inputs in seen.items()}
        used = {id(source): source for source in sources.values() if source is not None}
        self._sources = list(used.values())
        return {name: source for name, source in sources.items() if source is not None}

    def _sampled(
        self, block: str, firsts: Mapping[str, Sequence[Tensor]]
    ) -> list[ModulationSource]:
        """What these layers get for all pairs."""
        sides: list[Tensor] = []
        inputs: dict[str, list[Tensor]] = {name: [] for name in firsts}
        counts = {name[len(block) :]: len(seen) for name, seen in firsts.items()}
        for pair in self._pairs:
            got = self._inputs(block, list(firsts), pair.call, counts)
            sides.append(pair.sides)
            for name in firsts:
                inputs[name].append(torch.stack([_rows(x) for x in got[name]], dim=1))
        side = torch.cat(sides)
        return [
            _source(name, seen, torch.cat(inputs[name]).float(), side)
            for name, seen in firsts.items()
        ]

    def _inputs(
        self, block: str, names: Sequence[str], call: Call, counts: Mapping[str, int] | None
    ) -> dict[str, list[Tensor]]:
        """What these layers get in a call, which ends at the last of them.

        Args:
            counts: how often each is called; without it the block runs to its end.
        """
        got: dict[str, list[Tensor]] = {}
        left = None if counts is None else sum(counts.values())

        def see(name: str, seen: Call) -> None:
            got.setdefault(name, []).append(input_of(seen).detach().clone())
            if left is not None and sum(map(len, got.values())) >= left:
                raise _SeenError

        layers = {name: self._denoiser.get_submodule(name) for name in names}
        with self._reaching(block), _stopping(layers, self._denoiser.get_submodule(block), see):
            self._denoiser(*call.args, **call.kwargs)
        return got

    def _reaching(self, block: str) -> AbstractContextManager[None]:
        if self._chain is None:
            return nullcontext()
        return self._chain.reaching(self._chain.blocks.index(block))


class _SeenError(BaseException):
    """All is seen that a forward was run for; no `except Exception` of it sees this."""


@contextmanager
def _stopping(
    layers: Mapping[str, nn.Module], block: nn.Module, see: Callable[[str, Call], None]
) -> Iterator[None]:
    """`see(name, call)` is called before each call of a layer; the block's end ends the forward."""

    def before(name: str) -> Callable[..., None]:
        return lambda _layer, args, kwargs: see(name, Call(args, kwargs))

    def stop(*_: Any) -> None:
        raise _SeenError

    with ExitStack() as stack:
        for name, layer in layers.items():
            # First of all hooks, so that none has begun that the layer's end would undo.
            handle = layer.register_forward_pre_hook(before(name), prepend=True, with_kwargs=True)
            stack.callback(handle.remove)
        stack.callback(block.register_forward_hook(stop).remove)
        try:
            yield
        except _SeenError:
            return
    raise ModelError("a calibration call does not reach a block")


def _tries(call: Call, layout: RowLayout | None) -> tuple[Call, Call]:
    """A call of a few rows, and the same with other latents."""
    rows = range(min(2, num_rows(call)))
    small = take_rows(call, rows) if layout is None else layout.take(call, rows)
    sample = layout.sample(small) if layout else None
    sample = small.sample() if sample is None else sample
    generator = torch.Generator().manual_seed(0)
    if sample.is_floating_point():
        other = sample + torch.randn(sample.shape, generator=generator).to(sample)
    else:
        other = sample.flip(-1)
    return small, small.map(lambda leaf: other if leaf is sample else leaf)


def _source(name: str, seen: Sequence[Tensor], inputs: Tensor, side: Tensor) -> ModulationSource:
    """Inputs are [pairs, calls, C_in]."""
    if not inputs.isfinite().all():
        raise TargetError(f"{name}: NaN or Inf in what it gets; pass calls of finite numbers")
    fit, aside = (inputs[side.to(inputs.device) == part].flatten(0, 1) for part in (FIT, ASIDE))
    fit, aside = (fit if len(fit) else aside), (aside if len(aside) else fit)
    return ModulationSource(seen, InputSpread.of(fit), aside)


def _rows(inputs: Tensor) -> Tensor:
    return inputs.reshape(-1, inputs.shape[-1])


def _like(inputs: Sequence[Tensor], sources: Sequence[ModulationSource]) -> ModulationSource | None:
    return next((source for source in sources if _same(source.seen, inputs)), None)


def _same(first: Sequence[Tensor], second: Sequence[Tensor]) -> bool:
    return len(first) == len(second) and all(map(torch.equal, first, second))
