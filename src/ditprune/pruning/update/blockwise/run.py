"""What does updating a denoiser block by block take, and what does it give?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from ditprune.calibration.observe import stages, weight_at
from ditprune.calibration.workers import Worker
from ditprune.calls import Call
from ditprune.denoiser.blockwise.chain import Chain
from ditprune.denoiser.blockwise.residence import Residence
from ditprune.denoiser.blockwise.sweep import Make
from ditprune.method.recipe import Recipe
from ditprune.progress import Progress
from ditprune.pruning.update.blockwise.gains import BlockGains
from ditprune.pruning.update.grams import LayerGram
from ditprune.pruning.update.layers import Layer, TargetUpdate


@dataclass(frozen=True, eq=False)
class BlockUpdates:
    """What becomes of the targets of one block.

    Args:
        updates: by target, at its final share.
        first_updates: at the share that it has before a refinement that removes the rest; the same
            where there is none such.
        few: targets that saw too few inputs to be reconstructed.
    """

    updates: Mapping[str, TargetUpdate]
    first_updates: Mapping[str, TargetUpdate]
    few: tuple[str, ...] = ()
    refined: BlockRefined | None = None


@dataclass(frozen=True)
class BlockRefined:
    """What became of a block's refinement, by its errors on the rows kept aside from it.

    Args:
        is_taken: whether the trained weights were taken; they are not where the error did not fall.
        error_before, error_after: of what the block adds, relative to it; tokens and channels count
            as the denoiser's output follows them. The second is None where it is NaN or Inf.
        unreached: targets to which no gradient led.
    """

    is_taken: bool
    error_before: float
    error_after: float | None
    unreached: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Followed:
    """What gradients of the denoiser's output tell of a target.

    Args:
        errors: of the layer at `LEVELS`; empty where the allocation measures nothing.
        rows: how much each output channel counts, float32 [C_out]; None where no gradient comes.
        roots: √ of how much each token of its inputs counts, in order, float32 [T].
        outside: XᵀX of the weighted tokens that it sees outside of its block; None without any.
        gram: where Grams of all targets are kept.
    """

    errors: tuple[float, ...]
    rows: Tensor | None = None
    roots: Tensor | None = None
    outside: Tensor | None = None
    gram: LayerGram | None = None


class Results(Protocol):
    """Where what is done of each block is kept; blocks have numbers from 0."""

    def is_done(self, number: int) -> bool: ...

    def keep(self, number: int, updates: BlockUpdates) -> None: ...

    def measured(self, number: int) -> Mapping[str, Followed] | None:
        """None where it is not measured yet."""

    def keep_measured(self, number: int, measured: Mapping[str, Followed]) -> None: ...

    def gains(self, number: int) -> BlockGains | None:
        """None where no gradients were taken, or none comes to the block's outputs."""

    def keep_gains(self, number: int, gains: BlockGains | None) -> None: ...

    def weights(self, number: int) -> Mapping[str, Tensor]:
        """The new weights of a block that is done, [C_out, C_in]; none of one without targets."""


@dataclass(frozen=True, eq=False)
class BlockRun:
    """One denoiser, its layers as they were, and where results go.

    Args:
        layers: of all targets; each is in a block of the chain.
        calls: that go through the blocks.
        timestep_weights: how much calls count, by bins; None is alike.
        make: gives places for hidden states.
        worker: one of several processes that share the blocks.
        every: hidden states of one block in so many are kept for the way back.
        refine_calls: those on whose rows blocks are refined; empty for a recipe without.
    """

    chain: Chain
    residence: Residence
    layers: Mapping[str, Layer]
    calls: Sequence[Call]
    recipe: Recipe
    max_gram_bytes: int
    timestep_weights: Sequence[float] | None
    make: Make
    results: Results
    progress: Progress
    worker: Worker = field(default_factory=Worker)
    every: int = 1
    refine_calls: Sequence[Call] = ()

    def names_in(self, number: int) -> list[str]:
        """The targets of a block."""
        path = self.chain.blocks[number]
        return [name for name, layer in self.layers.items() if layer.target.block == path]

    def own_blocks(self) -> list[int]:
        """The numbers of the blocks with targets that this process does."""
        paths = {layer.target.block for layer in self.layers.values()}
        numbers = [number for number, path in enumerate(self.chain.blocks) if path in paths]
        return [number for i, number in enumerate(numbers) if self.worker.owns(i)]

    def stages(self, names: Sequence[str]) -> list[list[str]]:
        """As many of these targets at once as their Grams' memory allows."""
        targets = {name: self.layers[name].target for name in names}
        return stages(targets, 1, self.max_gram_bytes)

    def weight_of(self, call: Call) -> float:
        """How much a call counts."""
        weights = self.timestep_weights
        return 1.0 if weights is None else weight_at(weights, call.place)

    def told(self, what: str, num_done: int) -> None:
        """Say how many of the blocks something is done for."""
        self.progress(what, num_done, len(self.chain.blocks))
