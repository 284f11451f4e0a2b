"""What is there to shrink, and what would it cost? Before anything is changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from ditprune.calls import Call
from ditprune.checkpoints.shrunk.resize import number_of
from ditprune.denoiser.blockwise.chain import Chain
from ditprune.denoiser.layout import RowLayout
from ditprune.errors import ModelError
from ditprune.method.columns import Removal
from ditprune.pruning.update.gradients import no_gradients
from ditprune.shrinking.checks import check_groups
from ditprune.shrinking.choice import pools
from ditprune.shrinking.find import find_groups
from ditprune.shrinking.modulation import (
    NONE,
    ModulationFitter,
    Wanted,
    modulation_layers,
    why_none,
)
from ditprune.shrinking.moments import Demand
from ditprune.shrinking.plan import ShrinkPlan, pool_orders, select_groups
from ditprune.shrinking.prices import Prices
from ditprune.shrinking.recipe import ShrinkRecipe
from ditprune.shrinking.units import Cut, UnitGroup, Whole
from ditprune.targets.blocks import find_blocks
from ditprune.targets.matrix import as_matrix


def block_paths(denoiser: nn.Module, recipe: ShrinkRecipe) -> list[str]:
    """The paths of the blocks. Raises ModelError where there is none."""
    blocks = find_blocks(denoiser, recipe.blocks)
    paths = [block.path for block in blocks if not block.auxiliary]
    if not paths:
        raise ModelError(
            f"{type(denoiser).__name__}: no transformer blocks found; say where they are "
            "(--blocks 'layers.*')"
        )
    return paths


def units_of(
    denoiser: nn.Module, blocks: Sequence[str], call: Call, recipe: ShrinkRecipe
) -> tuple[dict[str, UnitGroup], list[Whole]]:
    """The attentions and MLPs that can lose units, tried on a call, and the others."""
    groups, whole = find_groups(denoiser, blocks)
    good, failed = check_groups(denoiser, call, select_groups(groups, recipe))
    return good, [part for part in (*whole, *failed) if part.kind in recipe.parts]


def orders_in(
    denoiser: nn.Module, groups: Mapping[str, UnitGroup], demands: Mapping[str, Demand],
    prices: Prices, recipe: ShrinkRecipe,
) -> dict[str, Sequence[Removal]]:  # fmt: skip
    """In which order the units go of the groups whose readers are known; their weights are there.

    Args:
        demands: by layer that reads units, those of whole pools.
    """
    orders: dict[str, Sequence[Removal]] = {}
    for names in pools(groups):
        pool = [groups[name] for name in names]
        layers = {consumer.layer for group in pool for consumer in group.consumers}
        if layers & demands.keys():
            weights = {layer: _weight(denoiser, layer) for layer in layers}
            orders |= pool_orders(pool, weights, demands, prices, recipe)
    return orders


def plan_of(
    denoiser: nn.Module, groups: Mapping[str, UnitGroup], orders: Mapping[str, Sequence[Removal]],
    prices: Prices, scale: float, recipe: ShrinkRecipe,
) -> ShrinkPlan:  # fmt: skip
    """What can go, and at which cost.

    Args:
        scale: the sum of squares of what the denoiser predicts for the same calls.

    Raises ModelError where gradients reach nothing.
    """
    if groups and not orders:
        raise no_gradients(denoiser, "no gradient reaches a layer that reads units")
    reached = {name: groups[name] for name in groups if name in orders}
    most = prices.of_groups(groups.values(), recipe.price)
    return ShrinkPlan(reached, orders, prices, scale, most)


def _weight(denoiser: nn.Module, name: str) -> tuple[Tensor, bool]:
    layer = denoiser.get_submodule(name)
    weight = as_matrix(layer.get_parameter("weight")).detach()
    return weight, getattr(layer, "bias", None) is not None


def numbers_after(denoiser: nn.Module, cut: Cut) -> dict[str, dict[str, int]]:
    """By module, the numbers that change, and what they become."""
    numbers: dict[str, dict[str, int]] = {}
    for (path, name), less in cut.numbers().items():
        before = number_of(denoiser.get_submodule(path), name)
        assert before is not None, f"{path}: no number {name}"
        numbers.setdefault(path, {})[name] = before - less
    return numbers


def fitter_of(
    denoiser: nn.Module, blocks: Sequence[str], calls: Sequence[Call], wanted: Wanted,
    chain: Chain | None = None,
) -> ModulationFitter | str | None:  # fmt: skip
    """What lowers the rank of modulation; why there is none to lower; None if it stays."""
    if wanted == NONE:
        return None
    reason = why_none(denoiser, modulation_layers(denoiser, blocks))
    if reason is not None:
        return reason
    layout = RowLayout(denoiser, calls)
    return ModulationFitter(denoiser, blocks, calls, wanted, chain, layout)
