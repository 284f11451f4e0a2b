"""How is a loaded denoiser updated block by block?"""

from __future__ import annotations

from functools import partial

from ditprune.denoiser.blockwise.residence import InMemory
from ditprune.denoiser.blockwise.states import States
from ditprune.method.recipe import Recipe
from ditprune.method.statistics.column_norm import timestep_weights
from ditprune.pruning.plan import read_module
from ditprune.pruning.update.blockwise.engine import update_blocks
from ditprune.pruning.update.blockwise.results import InMemoryResults
from ditprune.pruning.update.blockwise.run import BlockRun
from ditprune.pruning.update.blockwise.way import chain_of, takes_blocks, trunk
from ditprune.pruning.update.gradients import check_gradients
from ditprune.pruning.update.layers import TargetUpdate, prepare_layers, warn_of_few
from ditprune.pruning.update.prepared import UpdateInputs, needs_gradients, num_bins

ByTarget = dict[str, TargetUpdate]


def updated_in_memory(inputs: UpdateInputs, recipe: Recipe) -> tuple[ByTarget, ByTarget] | None:
    """Every target's update at its final share, and at the share it has before refinement; None
    where denoiser or recipe are not taken block by block.

    Raises RecipeError, StatisticsError, ModelError.
    """
    denoiser, targets, stats = inputs.denoiser, inputs.targets, inputs.stats
    if not takes_blocks(recipe):
        return None
    residence = InMemory(denoiser)
    blocks = trunk(denoiser, recipe, stats)
    chain = chain_of(blocks, targets, inputs.calls, residence, denoiser)
    if chain is None:
        return None
    if needs_gradients(recipe):
        check_gradients(denoiser, targets, inputs.calls)
    layers = prepare_layers(targets, read_module(denoiser), stats, recipe)
    results = InMemoryResults()
    device = next(denoiser.parameters()).device
    update_blocks(BlockRun(
        chain, residence, layers, inputs.calls, recipe, inputs.gram_bytes,
        timestep_weights(recipe.timestep_weighting, num_bins(stats)),
        partial(States, device=device), results, inputs.progress,
    ))  # fmt: skip
    done = results.blocks.values()
    warn_of_few([name for block in done for name in block.few], len(targets))
    updates = {name: update for block in done for name, update in block.updates.items()}
    first = {name: update for block in done for name, update in block.first_updates.items()}
    return {name: updates[name] for name in targets}, {name: first[name] for name in targets}
