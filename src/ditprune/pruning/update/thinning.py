"""The mask that is chosen while the kept weights train: the last of the removal, little by little.

A weight scores W² √v, v the mean square of its gradient as Adam has it: what is left of the error's
curvature tells weights of unlike layers apart, which a layer's own Gram cannot. What was removed
stays removed.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ditprune.method.allocation import MEASURED
from ditprune.method.masks import keep_best
from ditprune.method.recipe import Recipe
from ditprune.pruning.update.layers import Layer, TargetUpdate
from ditprune.pruning.update.trained import Trained

Masks = Mapping[str, Tensor]
# Shares of the way at which it begins, when Adam has seen some gradients, and ends.
_BEGIN, _END = 0.04, 0.5
_NUM_TIMES = 25
_GONE = -1.0  # the score of a removed weight; those of kept ones are from 0 up


@dataclass(frozen=True)
class Thinning:
    """From what layers have lost to what the recipe asks for.

    Args:
        layers: every target, with who competes in it.
        before, after: weights that each target has lost when training begins, and loses in all.
        is_joint: whether targets compete for the total, and `after` tells its sum only.
    """

    layers: Mapping[str, Layer]
    before: Mapping[str, int]
    after: Mapping[str, int]
    is_joint: bool

    def without(self, names: Collection[str]) -> Thinning:
        """For the other layers alone."""
        layers = {name: layer for name, layer in self.layers.items() if name not in names}
        before = {name: count for name, count in self.before.items() if name in layers}
        after = {name: count for name, count in self.after.items() if name in layers}
        return replace(self, layers=layers, before=before, after=after)

    def is_due(self, step: int, num_steps: int) -> bool:
        """Whether something goes before this step."""
        begin, end, every = self._times(num_steps)
        return begin <= step <= end and ((step - begin) % every == 0 or step == end)

    def masks(self, keep: Masks, scores: Masks, step: int, num_steps: int) -> dict[str, Tensor]:
        """What stays at this step; at the last one exactly what the recipe asks for.

        Args:
            keep: by target, [C_out, C_in], True stays as yet; there may be others.
            scores: likewise, float32, from 0 up; higher is kept.
        """
        if not self.layers:
            return {}
        begin, end, _ = self._times(num_steps)
        ramp = 1 - (1 - (step - begin + 1) / (end - begin + 1)) ** 3
        left = {name: scores[name].masked_fill(~keep[name], _GONE) for name in self.layers}
        if self.is_joint:
            return self._jointly(
                left, _between(sum(self.before.values()), sum(self.after.values()), ramp)
            )
        return {
            name: self._alone(name, left_OI, _between(self.before[name], self.after[name], ramp))
            for name, left_OI in left.items()
        }

    def _times(self, num_steps: int) -> tuple[int, int, int]:
        begin = max(1, int(_BEGIN * num_steps))  # Adam has seen no gradient before
        end = max(begin, int(_END * num_steps))
        return begin, end, max(1, (end - begin) // _NUM_TIMES)

    def _alone(self, name: str, scores: Tensor, num_prune: int) -> Tensor:
        """The best of each group of one target, as many as whole groups allow."""
        num_groups, group_size = self._group_shape(name)
        grouped = scores.reshape(num_groups, group_size)
        return keep_best(grouped, group_size - num_prune // num_groups).reshape(scores.shape)

    def _jointly(self, scores: Masks, num_prune: int) -> dict[str, Tensor]:
        """The best of all targets. Where each group of a target has to lose the same number, its
        j-th lowest weights go together, at their mean; the rest makes the total exact.
        """
        masks, free = {}, dict(scores)
        together = {name for name in scores if self._group_shape(name)[0] > 1}
        if together:
            ranked = {name: self._by_groups(name, scores_OI) for name, scores_OI in scores.items()}
            for name, keep in _best_of_all(ranked, num_prune).items():
                if name in together:
                    num_own = keep.numel() - int(keep.sum())
                    masks[name] = self._alone(name, free.pop(name), num_own)
            num_prune -= sum(mask.numel() - int(mask.sum()) for mask in masks.values())
        masks |= _best_of_all(free, num_prune) if free else {}
        return {name: masks[name] for name in scores}

    def _by_groups(self, name: str, scores: Tensor) -> Tensor:
        num_groups, group_size = self._group_shape(name)
        if num_groups == 1:
            return scores
        mean_K = scores.reshape(num_groups, group_size).sort(dim=1).values.mean(0)
        return mean_K.expand(num_groups, -1)

    def _group_shape(self, name: str) -> tuple[int, int]:
        layer = self.layers[name]
        return layer.groups.group_shape(*layer.target.shape)


def thinning(
    layers: Mapping[str, Layer], recipe: Recipe,
    before: Mapping[str, float | None], after: Mapping[str, float | None],
) -> Thinning:  # fmt: skip
    """From one share of every target to another; where the recipe measures what each target
    costs, they compete for the total.
    """
    first, last = (
        {name: layer.num_pruned(shares[name]) for name, layer in layers.items()}
        for shares in (before, after)
    )
    return Thinning(layers, first, last, recipe.allocation in MEASURED)


def thinning_of(
    recipe: Recipe, updates: Mapping[str, TargetUpdate], first_updates: Mapping[str, TargetUpdate]
) -> Thinning:
    """From the shares of the first updates to those of the others."""
    layers = {name: update.layer for name, update in updates.items()}
    before = {name: update.sparsity for name, update in first_updates.items()}
    after = {name: update.sparsity for name, update in updates.items()}
    return thinning(layers, recipe, before, after)


def thin_(
    trained: Trained, keep: dict[str, Tensor], thinning: Thinning,
    settled: Mapping[str, tuple[Tensor, Tensor]], step: int, num_steps: int,
) -> Thinning:  # fmt: skip
    """Remove what is due from `keep`; targets that no gradient has reached take what they settle
    for, and the others go on.
    """
    scores = trained.scores()
    late = thinning.layers.keys() - scores.keys()
    for name in late:
        weight, keep[name] = settled[name]
        trained.set_(name, weight)
    thinning = thinning.without(late)
    keep |= thinning.masks(keep, scores, step, num_steps)
    return thinning


def _between(first: int, last: int, ramp: float) -> int:
    return first + round(ramp * (last - first))


def _best_of_all(scores: Masks, num_prune: int) -> dict[str, Tensor]:
    """The lowest scores of all targets together go, exactly `num_prune`."""
    flat = torch.cat([scores_OI.reshape(-1) for scores_OI in scores.values()])
    keep = keep_best(flat[None], len(flat) - num_prune)[0]
    parts = keep.split([scores_OI.numel() for scores_OI in scores.values()])
    return {
        name: part.reshape(scores_OI.shape)
        for (name, scores_OI), part in zip(scores.items(), parts, strict=True)
    }
