"""How is a loaded denoiser updated block by block?"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ditprune.denoiser.blockwise.residence import InMemory
from ditprune.method.recipe import Recipe
from ditprune.pruning.plan import read_module
from ditprune.pruning.update.blockwise.engine import update_blocks
from ditprune.pruning.update.blockwise.results import InMemoryResults
from ditprune.pruning.update.blockwise.run import BlockRefined
from ditprune.pruning.update.blockwise.way import Ground, run_on, takes_blocks
from ditprune.pruning.update.gradients import check_gradients
from ditprune.pruning.update.layers import TargetUpdate, warn_of_few
from ditprune.pruning.update.prepared import UpdateInputs, needs_gradients


@dataclass(frozen=True, eq=False)
class BlockwiseUpdates:
    """Of all blocks.

    Args:
        updates: by target, at its final share.
        first_updates: at the share that it has before a refinement that is yet to come.
        refined: by block, where blocks were trained one by one.
    """

    updates: Mapping[str, TargetUpdate]
    first_updates: Mapping[str, TargetUpdate]
    refined: Mapping[str, BlockRefined]


def updated_in_memory(inputs: UpdateInputs, recipe: Recipe) -> BlockwiseUpdates | None:
    """Every target's update; None where denoiser or recipe are not taken block by block.

    Raises RecipeError, StatisticsError, ModelError.
    """
    denoiser, targets = inputs.denoiser, inputs.targets
    if not takes_blocks(recipe):
        return None
    results = InMemoryResults()
    with tempfile.TemporaryDirectory() as folder:
        ground = Ground(
            denoiser, InMemory(denoiser), read_module(denoiser),
            next(denoiser.parameters()).device, Path(folder),
        )  # fmt: skip
        run = run_on(ground, inputs, recipe, results)
        if run is None:
            return None
        if needs_gradients(recipe):
            check_gradients(denoiser, targets, inputs.calls)
        update_blocks(run)
    done = results.blocks.values()
    warn_of_few([name for block in done for name in block.few], len(targets))
    updates = {name: update for block in done for name, update in block.updates.items()}
    first = {name: update for block in done for name, update in block.first_updates.items()}
    return BlockwiseUpdates(
        {name: updates[name] for name in targets},
        {name: first[name] for name in targets},
        {run.chain.blocks[n]: b.refined for n, b in results.blocks.items() if b.refined},
    )
