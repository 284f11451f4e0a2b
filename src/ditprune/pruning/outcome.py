"""What a run did: every target of a denoiser, the sums, and the claims that `verify` checks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from ditprune.method.recipe import Recipe
from ditprune.method.statistics.collected import Statistics
from ditprune.pruning.plan import Selection
from ditprune.targets.coverage import LeftOut
from ditprune.targets.discover import Target


@dataclass(frozen=True)
class TargetOutcome(Target):
    """A target and what happened to it.

    Args:
        granularity: `layer`, `channel` or N:M.
        num_groups: comparison groups.
        g_out: heterogeneity of its output channels (paper, Eq. 10).
        num_asked: weights to remove by the recipe.
        num_pruned: weights removed, counted in the mask.
        num_zero: zeros in the result; more than `num_pruned` where kept weights were zero before.
        sparsity: the share it was to lose under an allocation; None for the recipe's own.
        damping: of its reconstruction, against a unit diagonal; None without one.
    """

    granularity: str
    num_groups: int
    g_out: float
    num_asked: int
    num_pruned: int
    num_zero: int
    sparsity: float | None = None
    damping: float | None = None

    @classmethod
    def of(
        cls, target: Target, groups: Any, share: float | None, g_out: float, keep: Tensor,
        num_zero: int, **more: float | None,
    ) -> TargetOutcome:  # fmt: skip
        """What a mask [C_out, C_in] did to a target whose groups were to lose this share."""
        num_groups, group_size = groups.group_shape(*target.shape)
        return cls(
            **asdict(target),
            granularity=groups.name,
            num_groups=num_groups,
            g_out=g_out,
            num_asked=num_groups * (group_size - groups.num_keep(group_size, share)),
            num_pruned=keep.numel() - int(torch.count_nonzero(keep)),
            num_zero=num_zero,
            **more,  # type: ignore[arg-type]
        )

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> TargetOutcome:
        """From what `asdict` gave, by way of JSON."""
        return cls(**{**record, "shape": tuple(record["shape"])})


@dataclass(frozen=True)
class Outcome:
    """What happened to a denoiser: every target by name, and what stayed dense and why.

    Args:
        skipped: targets that could not be scored.
        left_out: other matrices inside its blocks.
    """

    targets: Mapping[str, TargetOutcome]
    skipped: Mapping[str, str]
    left_out: Mapping[str, LeftOut]
    num_parameters: int
    recipe: Recipe

    @property
    def cag_threshold(self) -> float | None:
        """The G_out from which CAG prunes per channel; None for another granularity."""
        return self.recipe.cag_threshold

    @property
    def num_weights(self) -> int:
        """Weights of all pruned targets together."""
        return sum(target.num_weights for target in self.targets.values())

    @property
    def num_pruned(self) -> int:
        """Weights removed from all targets together."""
        return sum(target.num_pruned for target in self.targets.values())

    @property
    def sparsity(self) -> float:
        """The removed share of the targets' weights."""
        return self.num_pruned / self.num_weights

    @property
    def model_sparsity(self) -> float:
        """The removed share of all parameters of the denoiser."""
        return self.num_pruned / self.num_parameters


def outcome_of(
    selection: Selection, targets: Mapping[str, TargetOutcome], recipe: Recipe
) -> Outcome:
    """The outcome of all that was selected."""
    return Outcome(
        targets,
        selection.skipped,
        selection.left_out,
        selection.num_parameters,
        recipe,
    )


def claims(
    outcome: Outcome,
    base: Mapping[str, Any],
    hashes: Mapping[str, str],
    stats: Statistics | None,
) -> dict[str, Any]:
    """The manifest of a denoiser, as plain values.

    Args:
        base: what identifies the dense model.
        hashes: the sha256 of every tensor that was written.
    """
    tensors = {f"{name}.weight" for name in outcome.targets}
    return {
        "recipe": outcome.recipe.to_json(),
        "cag_threshold": outcome.recipe.cag_threshold,
        "base": dict(base),
        "statistics": stats and {"num_calls": stats.num_calls, "protocol": dict(stats.protocol)},
        "totals": {
            "num_targets": len(outcome.targets),
            "num_weights": outcome.num_weights,
            "num_pruned": outcome.num_pruned,
            "sparsity": outcome.sparsity,
            "num_parameters": outcome.num_parameters,
            "model_sparsity": outcome.model_sparsity,
        },
        "skipped": dict(outcome.skipped),
        "left_out": {
            name: {"num_weights": layer.num_weights, "reason": layer.reason}
            for name, layer in outcome.left_out.items()
        },
        "targets": {
            name: {k: v for k, v in asdict(target).items() if k != "name"}
            | {"sha256": hashes[f"{name}.weight"]}
            for name, target in outcome.targets.items()
        },
        "untouched": {name: sha for name, sha in hashes.items() if name not in tensors},
    }
