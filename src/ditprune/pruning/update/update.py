"""All targets of a loaded denoiser together: budgets, then each layer, then the whole."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ditprune.calibration.observe import stages
from ditprune.calls import Call
from ditprune.errors import RecipeError, StatisticsError
from ditprune.method.distill import Distill
from ditprune.method.recipe import Recipe
from ditprune.progress import Progress
from ditprune.pruning.update import budgets
from ditprune.pruning.update.blockwise.in_memory import updated_in_memory
from ditprune.pruning.update.blockwise.run import BlockRefined
from ditprune.pruning.update.distill import Refinement, rate_for
from ditprune.pruning.update.gradients import outside_inference
from ditprune.pruning.update.layers import (
    TargetUpdate,
    is_settled_by_saliency,
    target_update,
    trained_updates,
    update_at,
    warn_of_few,
)
from ditprune.pruning.update.prepared import Prepared, UpdateInputs, prepare_all
from ditprune.pruning.update.swap import matrix_of, replaced
from ditprune.pruning.update.thinning import Thinning, thinning_of


@dataclass(frozen=True)
class RefinementResult:
    """What became of a refinement, by the relative errors on rows kept aside from it.

    Args:
        is_taken: whether the trained weights were taken; they are not where the error did not fall.
        error_before: of the reconstruction alone. Where blocks were trained one by one, of what a
            block adds, the mean of all; with a tail, the denoiser's before the tail.
        error_after: of the trained weights; None where that is NaN or Inf.
        unreached: targets to which no gradient led, which keep what their reconstruction gave.
        left_blocks: blocks whose own training did not help, which keep it too.
    """

    is_taken: bool
    error_before: float
    error_after: float | None
    unreached: tuple[str, ...] = ()
    left_blocks: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        lists = {"unreached": list(self.unreached), "left_blocks": list(self.left_blocks)}
        return {**asdict(self), **lists}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> RefinementResult:
        """From what `to_json` gave."""
        lists = {word: tuple(record.get(word, ())) for word in ("unreached", "left_blocks")}
        return cls(**{**record, **lists})

    @classmethod
    def of_blocks(cls, blocks: Mapping[str, BlockRefined]) -> RefinementResult:
        """Of blocks that were trained one by one, by their paths."""
        before = sum(block.error_before for block in blocks.values()) / len(blocks)
        is_taken = any(block.is_taken for block in blocks.values())
        # Blocks that were left count as they are; where all were, what training gave is told.
        after = [b.error_after if b.is_taken or not is_taken else b.error_before
                 for b in blocks.values()]  # fmt: skip
        finite = [error for error in after if error is not None]
        return cls(
            is_taken, before, sum(finite) / len(blocks) if len(finite) == len(blocks) else None,
            tuple(name for block in blocks.values() for name in block.unreached),
            tuple(path for path, block in blocks.items() if not block.is_taken),
        )  # fmt: skip


@dataclass(frozen=True, eq=False)
class Updates:
    """What becomes of every target, and of the refinement where there was one."""

    targets: Mapping[str, TargetUpdate]
    refined: RefinementResult | None = None


def update_targets(
    inputs: UpdateInputs, recipe: Recipe, prepared: Prepared | None = None,
    costs: Mapping[str, Sequence[float]] | None = None,
) -> Updates:  # fmt: skip
    """New weights for every target; the denoiser itself is left as it was.

    Where Grams of all targets fit `max_gram_bytes` together and no refinement follows, one pass of
    whole calls is the quickest. Else they are made block by block if denoiser and recipe allow it,
    or stage by stage with a pass over the calls for each, twice where budgets are measured. With
    packages, each begins a stage.

    Args:
        prepared: by a run with another share.
        costs: of the recipe's allocation, where they are measured already.

    Raises:
        RecipeError, StatisticsError, ModelError.
    """
    if recipe.needs_calls:
        check_has_calls(inputs.calls)
    goes_whole = prepared is not None or _fits_at_once(inputs, recipe)
    done = None if goes_whole else updated_in_memory(inputs, recipe)
    updates: Mapping[str, TargetUpdate]
    first_updates: Mapping[str, TargetUpdate]
    if done is None:
        updates, first_updates = updated_whole(inputs, recipe, prepared, costs)
    else:
        updates, first_updates = done.updates, done.first_updates
    if recipe.refinement is None:
        return Updates(updates)
    if done is not None and done.refined:
        blocks = Updates(updates, RefinementResult.of_blocks(done.refined))
        return with_tail(inputs, recipe.refinement, blocks)
    thin = thinning_of(recipe, updates, first_updates) if recipe.mask == "refinement" else None
    return _refined(inputs, recipe.refinement, updates, first_updates, thin)


def with_tail(inputs: UpdateInputs, settings: Distill, blocks: Updates) -> Updates:
    """Blocks that were trained one by one, and then all together for a few steps, if any."""
    tail = settings.of_tail()
    if tail is None:
        return blocks
    assert blocks.refined is not None
    done = _refined(inputs, tail, blocks.targets, blocks.targets, None)
    assert done.refined is not None
    told, of_blocks = done.refined, blocks.refined
    return Updates(
        done.targets,
        replace(
            told, is_taken=told.is_taken or of_blocks.is_taken,
            error_after=told.error_after if told.is_taken else told.error_before,
            unreached=of_blocks.unreached, left_blocks=of_blocks.left_blocks,
        ),
    )  # fmt: skip


def _fits_at_once(inputs: UpdateInputs, recipe: Recipe) -> bool:
    """Whether one pass of whole calls is all that Grams take: less than two through the blocks."""
    return (
        recipe.refinement is None
        and len(stages(inputs.targets, recipe.packages, inputs.gram_bytes)) == 1
    )


def updated_whole(
    inputs: UpdateInputs, recipe: Recipe, prepared: Prepared | None,
    costs: Mapping[str, Sequence[float]] | None,
) -> tuple[dict[str, TargetUpdate], dict[str, TargetUpdate]]:  # fmt: skip
    """What `reconstructed` gives, by whole calls of the denoiser."""
    prepared = prepare_all(inputs, recipe) if prepared is None else prepared
    layers, progress = prepared.layers, inputs.progress
    if costs is None:
        gram_of = prepared.grams.of
        costs = budgets.costs_of(inputs.denoiser, layers, gram_of, inputs.calls, recipe, progress)
    after = budgets.shares(layers, costs, recipe)
    before = None
    if recipe.mask == "refinement":
        before = budgets.shares(layers, costs, budgets.first_part(recipe))
    return reconstructed(prepared, recipe, after, before, progress)


def check_has_calls(calls: Sequence[Call]) -> None:
    """Refuse calls that are not there, or whose sample is not finite, before the work.

    Raises RecipeError and StatisticsError.
    """
    if not calls:
        raise RecipeError(
            "this recipe runs the denoiser on calibration calls and none were given; pass "
            "--calibration-set"
        )
    for number, call in enumerate(calls):
        sample = call.sample()
        if not sample.isfinite().all():
            raise StatisticsError(
                f"calibration calls: the sample of call {number} of {len(calls)} holds NaN or Inf; "
                "leave the call out, or sample in float32 or bfloat16"
            )


def check_needs_calls(recipes: Iterable[Recipe], given: str) -> None:
    """Refuse calls, named as they were `given`, where no recipe has a use for any.

    Raises RecipeError.
    """
    if not any(recipe.needs_calls for recipe in recipes):
        raise RecipeError(
            f"{given}: this recipe updates no weights and measures no budgets; leave it out, or "
            "ask for a reconstruction, a measured allocation, --max-error or the preset best"
        )


def check_needs_grams(recipes: Iterable[Recipe], given: str) -> None:
    """Refuse a limit for Grams, named as it was `given`, where no recipe collects any.

    Raises RecipeError.
    """
    if not any(recipe.needs_grams for recipe in recipes):
        raise RecipeError(
            f"{given}: this recipe collects no Grams; leave it out, or ask for a reconstruction or "
            "--allocation proxy"
        )


def reconstructed(
    prepared: Prepared, recipe: Recipe,
    after: Mapping[str, float | None], before: Mapping[str, float | None] | None,
    progress: Progress,
) -> tuple[dict[str, TargetUpdate], dict[str, TargetUpdate]]:  # fmt: skip
    """Every layer's update at its final share, and at the share it has before refinement."""
    updates: dict[str, TargetUpdate] = {}
    first_updates: dict[str, TargetUpdate] = updates if before is None else {}
    few: list[str] = []
    layers = prepared.layers
    for name, layer in layers.items():
        gram = prepared.grams.of(name, _weights(updates))
        few += [name] if is_settled_by_saliency(gram, recipe) else []
        update = update_at(layer, gram, recipe)
        updates[name] = target_update(update, after[name])
        if before is not None:
            first_updates[name] = target_update(update, before[name])
        progress("reconstructing", len(updates), len(layers))
    warn_of_few(few, len(layers))
    return updates, first_updates


def _refined(
    inputs: UpdateInputs, settings: Distill, updates: Mapping[str, TargetUpdate],
    first_updates: Mapping[str, TargetUpdate], thin: Thinning | None,
) -> Updates:  # fmt: skip
    """What gradient steps on all kept weights together make of `first_updates`; `updates` where
    these are not better on the rows kept aside.
    """
    denoiser = inputs.denoiser
    blocks = list(dict.fromkeys(update.layer.target.block for update in updates.values()))
    settled = {name: (update.weight, update.keep) for name, update in updates.items()}
    with torch.inference_mode(False):
        calls = outside_inference(inputs.calls)
        refinement = Refinement(denoiser, list(updates), blocks, calls, settings)
        with replaced(denoiser, _weights(updates)):
            before = refinement.error_before()
        rate = rate_for(before, settings)
        with replaced(denoiser, _weights(first_updates)):
            keep = {name: update.keep for name, update in first_updates.items()}
            keep = refinement.train_(keep, rate, thin, settled, inputs.progress)
            after = refinement.error()
            refined = {name: matrix_of(denoiser, name).float().clone() for name in updates}
    is_taken = after < before
    told = RefinementResult(
        is_taken, before, after if math.isfinite(after) else None, tuple(refinement.unreached)
    )
    if not is_taken:
        return Updates(updates, told)
    is_joint = thin is not None and thin.is_joint
    trained = trained_updates(updates, refined, keep, is_joint)
    return Updates(trained, told)


def _weights(updates: Mapping[str, TargetUpdate]) -> dict[str, Tensor]:
    return {name: update.weight for name, update in updates.items()}
