"""What a run would do, before any weight changes: targets, heterogeneity, comparison groups."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from torch import Tensor, nn

from ditprune.checkpoints.statistics_file import Statistics
from ditprune.checkpoints.weights import Weights
from ditprune.denoisers import DENOISER, OfDenoisers, qualified
from ditprune.method.granularity import CAG
from ditprune.method.recipe import Recipe
from ditprune.pruning.scoring import can_score
from ditprune.pruning.selection import Selection
from ditprune.pruning.survey import g_out_of
from ditprune.targets.coverage import LeftOut
from ditprune.targets.discover import Target
from ditprune.targets.matrix import as_matrix

Read = Callable[[Target], Tensor]


@dataclass(frozen=True)
class PlannedTarget(Target):
    """A target and what is known of its pruning.

    Args:
        g_out: heterogeneity of its output channels (paper, Eq. 10); None without statistics.
        granularity: the comparison group it will have, `layer`, `channel` or N:M; None where
            that takes statistics which were not given.
        num_prune: weights to remove; None where the granularity is not known, or where an
            allocation or the share under a `max_error` has yet to be measured.
    """

    g_out: float | None = None
    granularity: str | None = None
    num_prune: int | None = None


@dataclass(frozen=True)
class Plan(OfDenoisers):
    """The planned targets by name, what stays dense and why, and the whole they are part of.

    Args:
        recipe: by denoiser, if several have recipes that differ.
        fingerprint: of the weights of all targets, before anything is removed.
    """

    targets: Mapping[str, PlannedTarget]
    skipped: Mapping[str, str]
    left_out: Mapping[str, LeftOut]
    num_parameters: int
    recipe: Any
    fingerprint: str = ""
    component: str = DENOISER
    parts: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, selection: Selection, targets: Mapping[str, Any], recipe: Recipe) -> Any:
        """These targets, with all else as it was selected; the recipe with those blocks."""
        rest = (selection.skipped, selection.left_out, selection.num_parameters)
        with_blocks = replace(recipe, blocks=selection.blocks)
        return cls(targets, *rest, with_blocks, selection.fingerprint)

    @classmethod
    def joined(cls, parts: Mapping[str, Any]) -> Any:
        """The plans of all denoisers of a pipeline as one."""
        if len(parts) == 1:
            ((component, plan),) = parts.items()
            return replace(plan, component=component)
        recipes = {name: part.recipe for name, part in parts.items()}
        first = next(iter(recipes.values()))
        return cls(
            qualified({name: part.targets for name, part in parts.items()}),
            qualified({name: part.skipped for name, part in parts.items()}),
            qualified({name: part.left_out for name, part in parts.items()}),
            sum(part.num_parameters for part in parts.values()),
            first if all(recipe == first for recipe in recipes.values()) else recipes,
            parts=parts,
        )

    @property
    def cag_threshold(self) -> float | None:
        """The G_out from which CAG prunes per channel; None where no target is grouped by it."""
        is_grouped = all(target.granularity is not None for target in self.targets.values())
        return self.recipe.cag_threshold if is_grouped and isinstance(self.recipe, Recipe) else None

    @property
    def num_weights(self) -> int:
        """Weights of all targets together."""
        return sum(target.num_weights for target in self.targets.values())


def read_module(denoiser: nn.Module) -> Read:
    """Reads a target's weight from a loaded module: a view of it, [C_out, C_in]."""
    return lambda target: as_matrix(denoiser.get_parameter(f"{target.name}.weight").detach())


def read_weights(weights: Weights) -> Read:
    """Reads a target's weight from disk, [C_out, C_in]."""
    return lambda target: as_matrix(weights.read(f"{target.name}.weight"))


def make_plan(selection: Selection, read: Read, stats: Statistics | None, recipe: Recipe) -> Plan:
    """Measure G_out of every target, if its weights can be scored, and choose every group."""
    planned, has_values = {}, bool(selection.fingerprint)
    for name, target in selection.targets.items():
        g_out = None
        if has_values and can_score(recipe, stats):
            g_out = g_out_of(target, read(target), stats, recipe)
        planned[name] = _plan_target(target, g_out, recipe)
    return Plan.of(selection, planned, recipe)


def _plan_target(target: Target, g_out: float | None, recipe: Recipe) -> PlannedTarget:
    if isinstance(recipe.granularity, CAG) and g_out is None:
        return PlannedTarget(**asdict(target))
    groups = recipe.groups(g_out or 0.0)
    num_groups, group_size = groups.group_shape(*target.shape)
    num_prune = None  # of a measured allocation, or where the share is found by measuring
    if recipe.allocation == "uniform" and recipe.max_error is None:
        num_prune = num_groups * (group_size - groups.num_keep(group_size, recipe.sparsity))
    return PlannedTarget(
        **asdict(target),
        g_out=g_out,
        granularity=groups.name,
        num_prune=num_prune,
    )
