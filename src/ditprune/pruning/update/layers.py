"""One layer at a time: its mask and its new weight, by the recipe's reconstruction."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ditprune.checkpoints.statistics_file import Statistics
from ditprune.errors import ModelError
from ditprune.method.granularity import heterogeneity
from ditprune.method.masks import keep_best
from ditprune.method.recipe import Recipe
from ditprune.method.reconstruction.layer import Choice, LayerResult, Nothing, Solve
from ditprune.method.statistics.gram import FEW_INPUTS, Gram, has_few_inputs
from ditprune.pruning.scoring import norms_for, scores_of
from ditprune.pruning.update.grams import LayerGram
from ditprune.targets.discover import Target

ROWS_OF_CURVE = 256  # that tell what each share of a layer costs


@dataclass(frozen=True, eq=False)
class Layer:
    """A target with all that its pruning at any share needs; its numbers are read when asked for.

    Args:
        read: gives its dense weight, [C_out, C_in].
        score: gives the recipe's saliency of that, float32 [C_out, C_in].
        norms: gives the argument `norm` of the recipe's reconstruction, if that needs it.
        groups: the granularity it has under the recipe, `layer`, `channel` or N:M.
        g_out: heterogeneity of its output channels.
    """

    target: Target
    read: Callable[[], Tensor]
    score: Callable[[Tensor], Tensor]
    norms: Callable[[], dict[str, Tensor]]
    groups: Any
    g_out: float

    def weight(self) -> Tensor:
        """Dense, float32, a copy."""
        return self.read().detach().float().clone()

    def scores(self) -> Tensor:
        """Higher is kept."""
        return self.score(self.read())

    def choice(self, sparsity: float | None) -> Choice:
        """Who competes, and how many stay at this share."""
        _, group_size = self.groups.group_shape(*self.target.shape)
        return Choice(group_size, self.groups.num_keep(group_size, sparsity))

    def num_pruned(self, sparsity: float | None) -> int:
        """Weights that it loses at this share."""
        num_groups, group_size = self.groups.group_shape(*self.target.shape)
        return num_groups * (group_size - self.groups.num_keep(group_size, sparsity))

    def mask_by_saliency(self, sparsity: float | None) -> Tensor:
        """The mask that the scores choose."""
        choice = self.choice(sparsity)
        grouped = self.scores().reshape(-1, choice.group_size)
        return keep_best(grouped, choice.num_keep).reshape(self.target.shape)


def prepare(
    target: Target, read: Callable[[], Tensor], stats: Statistics | None, recipe: Recipe,
) -> Layer:  # fmt: skip
    """The layer, before anything is removed from it."""

    def score(weight: Tensor) -> Tensor:
        return scores_of(target, weight, stats, recipe)

    g_out = heterogeneity(score(read()))
    norms = partial(norms_for, recipe.reconstruction, target.name, stats, recipe)
    return Layer(target, read, score, norms, recipe.groups(g_out), g_out)


@torch.no_grad()
def prepare_layers(
    targets: Mapping[str, Target], read: Callable[[Target], Tensor], stats: Statistics | None,
    recipe: Recipe,
) -> dict[str, Layer]:  # fmt: skip
    """Every layer, its weight read once.

    Args:
        read: gives a target's dense weight, [C_out, C_in].
    """
    return {
        name: prepare(target, partial(read, target), stats, recipe)
        for name, target in targets.items()
    }


def is_settled_by_saliency(gram: LayerGram | None, recipe: Recipe) -> bool:
    """Whether a layer saw too few inputs to be reconstructed; it is pruned by its saliency then."""
    return recipe.reconstructs and gram is not None and has_few_inputs(gram.products)


def warn_of_few(few: Sequence[str], num_layers: int) -> None:
    """Warn of layers that are settled by their saliency."""
    if few:
        warnings.warn(
            f"{len(few)} of {num_layers} layers see fewer than {FEW_INPUTS} inputs that differ in "
            f"the calibration calls (first {few[0]}), too few to reconstruct them: they are pruned "
            "by their saliency alone; calibrate with more timesteps and more prompts",
            stacklevel=3,
        )


@dataclass(frozen=True, eq=False)
class ShareUpdate:
    """A layer's masks and new weights at any share; what does not depend on the share is done.

    Args:
        solve: the recipe's reconstruction, for a mask or a choice.
        choose: what `solve` takes at a share.
        roots: factors of the rows of the weight that `solve` sees, [C_out, 1]; None is one.
    """

    layer: Layer
    weight: Tensor
    solve: Solve
    choose: Callable[[float | None], Tensor | Choice]
    roots: Tensor | None

    @torch.no_grad()
    def __call__(self, sparsity: float | None) -> LayerResult:
        result = self.solve(self.choose(sparsity))
        if self.roots is not None:
            is_same = result.weight == self.weight * self.roots  # keeps its bits
            new = torch.where(is_same, self.weight, result.weight / self.roots) * result.keep
            result = replace(result, weight=new)
        check_fits(self.layer.target.name, result.weight, self.layer.read().dtype)
        return result

    @torch.no_grad()
    def errors(self, levels: Sequence[float]) -> list[float]:
        """Of the layer at each share, ascending; quicker, and about as large, where the
        reconstruction can go from one to the next.
        """
        chosen = [self.choose(level) for level in levels]
        errors = getattr(self.solve, "errors", None)
        if errors is not None and all(isinstance(choice, Choice) for choice in chosen):
            return list(errors(chosen))
        return [self.solve(choice).error for choice in chosen]


@torch.no_grad()
def update_at(layer: Layer, gram: LayerGram | None, recipe: Recipe) -> ShareUpdate:
    """The layer's mask and new weight at any share, by the recipe's reconstruction.

    Args:
        gram: of the layer's inputs; None for a recipe that needs none. Without a reconstruction
            weights are zeroed, and their squares are the error.
    """
    weight, method = layer.weight(), recipe.reconstruction
    choose = layer.mask_by_saliency if recipe.mask == "saliency" else layer.choice
    if gram is None and not recipe.reconstructs:
        return ShareUpdate(layer, weight, partial(_zeroed, weight), choose, None)
    if is_settled_by_saliency(gram, recipe):
        method, choose = Nothing(), layer.mask_by_saliency
    roots = None
    # A subclass of Linear may give back another number of channels than its weight has rows.
    if gram is not None and gram.rows is not None and len(gram.rows) == len(weight):
        roots = gram.rows.sqrt()[:, None]
    seen = weight if roots is None else weight * roots
    # A Gram that an allocation needed lets zeroing tell its error.
    sees_gram = gram is not None and (Gram in method.needs or isinstance(method, Nothing))
    norms = {} if isinstance(method, Nothing) else layer.norms()
    given = {**({"gram": gram.products} if gram is not None and sees_gram else {}), **norms}
    prepare = getattr(method, "prepare", None)
    solve = partial(method, seen, **given) if prepare is None else prepare(seen, **given)
    return ShareUpdate(layer, weight, solve, choose, roots)


def errors_of(
    layer: Layer, gram: LayerGram | None, recipe: Recipe, levels: Sequence[float]
) -> list[float]:
    """About the layer's error at each share, ascending: from some of its rows, evenly spread."""
    num_out, num_in = layer.target.shape
    if num_out <= ROWS_OF_CURVE:
        return update_at(layer, gram, recipe).errors(levels)
    rows_R = torch.linspace(0, num_out - 1, ROWS_OF_CURVE).round().long()
    part = replace(
        layer,
        target=replace(layer.target, shape=(ROWS_OF_CURVE, num_in)),
        read=lambda: layer.read()[rows_R],
    )
    if gram is not None and gram.rows is not None and len(gram.rows) == num_out:
        gram = replace(gram, rows=gram.rows[rows_R])
    errors = update_at(part, gram, recipe).errors(levels)
    return [error * num_out / ROWS_OF_CURVE for error in errors]


@dataclass(frozen=True, eq=False)
class TargetUpdate:
    """What becomes of one target.

    Args:
        weight: new, float32 [C_out, C_in], zero where it is removed.
        keep: True stays.
        layer: the target as it was, and its groups.
        sparsity: the share it was to lose; None under N:M.
        damping: of its reconstruction, against a unit diagonal.
    """

    weight: Tensor
    keep: Tensor
    layer: Layer
    sparsity: float | None
    damping: float


def target_update(update: ShareUpdate, share: float | None) -> TargetUpdate:
    """The layer at this share."""
    done = update(share)
    return TargetUpdate(done.weight, done.keep, update.layer, share, done.damping)


def trained_updates(
    updates: Mapping[str, TargetUpdate], weights: Mapping[str, Tensor], keep: Mapping[str, Tensor],
    is_joint: bool,
) -> dict[str, TargetUpdate]:  # fmt: skip
    """The updates with weights and masks that training gave.

    Args:
        is_joint: whether the layers competed, so that each lost a share of its own.
    """
    return {
        name: replace(
            update, weight=weights[name], keep=keep[name],
            sparsity=_share_removed(keep[name]) if is_joint else update.sparsity,
        )
        for name, update in updates.items()
    }  # fmt: skip


def _share_removed(keep: Tensor) -> float:
    return (keep.numel() - int(keep.sum())) / keep.numel()


def check_fits(name: str, weight: Tensor, dtype: torch.dtype) -> None:
    """Raises ModelError for an updated weight that its dtype cannot represent."""
    largest = float(weight.abs().max())
    if not largest <= torch.finfo(dtype).max:
        raise ModelError(
            f"{name}: an updated weight is {largest:.3g}, and {dtype} does not hold it; load the "
            "denoiser in float32 or bfloat16, exclude this layer, or leave the reconstruction out"
        )


def _zeroed(weight: Tensor, keep: Any) -> LayerResult:
    return LayerResult(weight * keep, keep, 0.0, (weight * ~keep).square().sum().item())
