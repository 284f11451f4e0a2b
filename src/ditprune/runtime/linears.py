"""Which Linears of a denoiser could be replaced by sparse layers, and what stands in the way?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from ditprune.targets.blocks import find_blocks
from ditprune.targets.wrapped import is_adapted
from ditprune.targets.writable import no_values
from ditprune.targets.writable import obstacle as unwritable

UNDER_ADAPTER = (
    "under an adapter, or part of one; merge it and remove it (pipe.fuse_lora(), then "
    "pipe.unload_lora_weights()), and call sparsify_ again"
)
# Classes of torch that read the weights of their Linears and do not call these, at least in eval
# mode without gradients.
_READERS = (nn.MultiheadAttention, nn.TransformerEncoderLayer)


def read_by(kind: str) -> str:
    """Why a layer stays dense whose weight a module of this class reads."""
    return (
        f"{kind} reads its weight in place of calling it, and would unpack a sparse one each time"
    )


def linears(denoiser: nn.Module) -> Iterator[tuple[str, nn.Linear]]:
    """Every Linear, under each of its names."""
    for name, module in denoiser.named_modules(remove_duplicate=False):
        if name and isinstance(module, nn.Linear):
            yield name, module


def names_in(denoiser: nn.Module, blocks: Sequence[str]) -> list[str]:
    """The names of all Linears, or of those in the blocks that globs name.

    A list of Linears would keep every dense weight in memory; a list of names does not.
    """
    if not blocks:
        return [name for name, _ in linears(denoiser)]
    modules = [block.module for block in find_blocks(denoiser, blocks)]
    inside = {id(part) for module in modules for part in module.modules()}
    return [name for name, linear in linears(denoiser) if id(linear) in inside]


@dataclass(frozen=True)
class Surroundings:
    """What a Linear's obstacle depends on beside the layer itself.

    Args:
        uses: how many layers have a weight, by its id.
        readers: classes of modules that read a layer's weight, by the layer's id.
        adapted: why layers under adapters, and the layers of adapters, stay dense, by id.
    """

    uses: Mapping[int, int]
    readers: Mapping[int, str]
    adapted: Mapping[int, str]

    @classmethod
    def of(cls, denoiser: nn.Module) -> Surroundings:
        uses = Counter(id(linear._parameters.get("weight")) for _, linear in linears(denoiser))
        readers = {
            id(child): type(module).__name__
            for module in denoiser.modules()
            if isinstance(module, _READERS)
            for child in module.children()
        }
        # Merging an adapter writes into the layer under it, and would write into a copy.
        adapted = {
            id(part): UNDER_ADAPTER
            for wrapper in denoiser.modules()
            if is_adapted(wrapper)
            for part in wrapper.modules()
        }
        return cls(uses, readers, adapted)

    def obstacle(self, linear: nn.Linear, counts: tuple[int, ...]) -> str:
        """Why no backend can swap a layer; empty if one can.

        Args:
            counts: the numbers of tokens that it gets.
        """
        if reason := self.adapted.get(id(linear)):
            return reason
        if reader := self.readers.get(id(linear)):
            return read_by(reader)
        if reason := unwritable(linear) or no_values(linear):
            return reason
        if type(linear) is not nn.Linear:
            return f"{type(linear).__name__} is a subclass of nn.Linear, with what it adds"
        if self.uses[id(linear.weight)] > 1:
            return "its weight is shared"
        if "forward" in vars(linear):
            return "its forward is replaced (by a hook of accelerate or diffusers)"
        if linear._forward_hooks or linear._forward_pre_hooks or linear._backward_hooks:
            return "it has hooks"
        return "" if counts else "never called"
