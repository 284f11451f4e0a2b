"""Which recipes, and which denoisers, are updated block by block, and how does that begin?"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ditprune.calibration.workers import Worker
from ditprune.calls import Call
from ditprune.checkpoints.statistics_file import Statistics
from ditprune.denoiser.blockwise.chain import Chain
from ditprune.denoiser.blockwise.find import find_chain
from ditprune.denoiser.blockwise.residence import Residence
from ditprune.method.distill import Distill
from ditprune.method.recipe import Recipe
from ditprune.method.statistics.column_norm import timestep_weights
from ditprune.pruning.update.blockwise.room import place_states
from ditprune.pruning.update.blockwise.run import BlockRun, Results
from ditprune.pruning.update.grams import rows_for_output
from ditprune.pruning.update.layers import prepare_layers
from ditprune.pruning.update.prepared import UpdateInputs, num_bins
from ditprune.targets.blocks import find_blocks
from ditprune.targets.discover import Target

_log = logging.getLogger("ditprune")


def takes_blocks(recipe: Recipe) -> bool:
    """Whether a recipe asks for nothing that needs the whole denoiser at once."""
    sees_whole = recipe.allocation == "sensitivity" or recipe.max_error is not None
    mixes = recipe.allocation == "proxy" and recipe.objective == "layer"
    return recipe.needs_grams and recipe.packages == 1 and not sees_whole and not mixes


def streams(recipe: Recipe) -> bool:
    """Whether a recipe is carried out with one block of the denoiser in memory."""
    return takes_blocks(recipe) and (recipe.refinement is None or refines_blocks(recipe))


def refines_blocks(recipe: Recipe) -> bool:
    """Whether a recipe trains blocks one by one."""
    return isinstance(recipe.refinement, Distill)


def trunk(denoiser: nn.Module, recipe: Recipe, stats: Statistics | None) -> list[str]:
    """The paths of the blocks that may chain; works on the meta device."""
    globs = recipe.blocks or (() if stats is None else stats.blocks)
    return [block.path for block in find_blocks(denoiser, globs) if not block.auxiliary]


def chain_of(
    blocks: Sequence[str], targets: Mapping[str, Target], calls: Sequence[Call],
    residence: Residence, denoiser: nn.Module,
) -> Chain | None:  # fmt: skip
    """The chain that these blocks are; None, and a word in the log, where they are none."""
    apart = [name for name, target in targets.items() if target.block not in blocks]
    chain: Chain | str = f"{apart[0]} lies outside of them" if apart else ""
    if not apart:
        chain = find_chain(denoiser, blocks, calls, residence)
    if isinstance(chain, Chain):
        return chain
    _log.info("%s: not taken block by block: %s", type(denoiser).__name__, chain)
    return None


@dataclass(frozen=True, eq=False)
class Ground:
    """A denoiser to be updated block by block.

    Args:
        read: gives a target's dense weight, [C_out, C_in].
        folder: of hidden states that memory does not hold.
        left_bytes: memory for those and for gradients; None where no limit was given.
    """

    denoiser: nn.Module
    residence: Residence
    read: Callable[[Target], Tensor]
    device: str | torch.device
    folder: Path
    left_bytes: int | None = None


def run_on(
    ground: Ground, inputs: UpdateInputs, recipe: Recipe, results: Results,
    worker: Worker | None = None,
) -> BlockRun | None:  # fmt: skip
    """What `update_blocks` takes; None where the blocks do not chain.

    Raises RecipeError where there is no room for hidden states.
    """
    targets, stats, residence, calls = inputs.targets, inputs.stats, ground.residence, inputs.calls
    denoiser = ground.denoiser
    refine_calls = calls if refines_blocks(recipe) else []
    if recipe.objective == "output":
        with residence.running():
            calls = rows_for_output(denoiser, targets, calls)
    chain = chain_of(trunk(denoiser, recipe, stats), targets, calls, residence, denoiser)
    if chain is None:
        return None
    make, every = place_states(
        chain, calls, residence, ground.folder, ground.device, ground.left_bytes,
        recipe.objective == "output", refine_calls,
    )  # fmt: skip
    weights = timestep_weights(recipe.timestep_weighting, num_bins(stats))
    layers = prepare_layers(targets, ground.read, stats, recipe)
    return BlockRun(
        chain, residence, layers, calls, recipe, inputs.gram_bytes, weights, make, results,
        inputs.progress, worker or Worker(), every, refine_calls,
    )  # fmt: skip
