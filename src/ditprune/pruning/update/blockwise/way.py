"""Which recipes, and which denoisers, are updated block by block?"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

from torch import nn

from ditprune.calls import Call
from ditprune.checkpoints.statistics_file import Statistics
from ditprune.denoiser.blockwise.chain import Chain
from ditprune.denoiser.blockwise.find import find_chain
from ditprune.denoiser.blockwise.residence import Residence
from ditprune.method.recipe import Recipe
from ditprune.targets.blocks import find_blocks
from ditprune.targets.discover import Target

_log = logging.getLogger("ditprune")


def takes_blocks(recipe: Recipe) -> bool:
    """Whether a recipe asks for nothing that needs the whole denoiser at once."""
    sees_whole = recipe.allocation == "sensitivity" or recipe.max_error is not None
    mixes = recipe.allocation == "proxy" and recipe.objective == "layer"
    return recipe.needs_grams and recipe.packages == 1 and not sees_whole and not mixes


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
