"""How much memory does updating the weights of a loaded denoiser take, and is it allowed?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ditprune.calibration.observe import gram_bytes, stages
from ditprune.checkpoints.skeleton import skeleton
from ditprune.denoiser.placement import Placement
from ditprune.errors import RecipeError
from ditprune.method.recipe import Recipe
from ditprune.pruning.job import Job
from ditprune.pruning.update.blockwise.room import blockwise_bytes
from ditprune.pruning.update.blockwise.way import streams, trunk
from ditprune.pruning.update.prepared import DEFAULT_GRAM_BYTES
from ditprune.reporting import formats
from ditprune.targets.discover import Target

_FLOAT = 4


def update_bytes(
    targets: Mapping[str, Target], recipe: Recipe, num_parameters: int, itemsize: int = _FLOAT,
    max_gram_bytes: int | None = None,
) -> int:  # fmt: skip
    """Of weights, results, Grams and what training keeps, without activations.

    Args:
        itemsize: bytes of a weight of the denoiser, as it is loaded.
        max_gram_bytes: None is 4 GB; a layer whose Gram alone takes more is taken alone.
    """
    rest = _without_grams(targets, recipe, num_parameters, itemsize)
    if not recipe.needs_grams:
        return rest
    cut = stages(targets, recipe.packages, max_gram_bytes or DEFAULT_GRAM_BYTES)
    return rest + max(sum(gram_bytes(targets[name]) for name in names) for names in cut)


def _without_grams(
    targets: Mapping[str, Target], recipe: Recipe, num_parameters: int, itemsize: int
) -> int:
    """Each target's result with its mask; in training a teacher, gradients, Adam's two means, the
    weights before and the masks as numbers as well.
    """
    results = (_FLOAT + 1) * (2 if recipe.mask == "refinement" else 1)
    trains = recipe.refinement is not None
    copies = results + (5 * _FLOAT if trains else 0)
    num_weights = sum(target.num_weights for target in targets.values())
    return itemsize * num_parameters * (2 if trains else 1) + copies * num_weights


def gram_bytes_within(
    jobs: Sequence[Job], placement: Placement, max_gram_bytes: int | None
) -> int | None:
    """What Grams may take: what was asked for, else 4 GB or what the rest leaves of the memory.

    Raises RecipeError where the updates of a denoiser take more memory than the placement allows.
    """
    limit = placement.max_memory
    if limit is None:
        return max_gram_bytes
    grams = max_gram_bytes
    for job in (job for job in jobs if job.recipe.needs_calls):
        if streams(job.recipe):
            grams = _within_blocks(job, placement, limit, max_gram_bytes, grams)
            continue
        if max_gram_bytes is None:
            targets, size = job.selection.targets, job.selection.num_parameters
            left = limit - _without_grams(targets, job.recipe, size, placement.dtype.itemsize)
            grams = max(1, min(grams or DEFAULT_GRAM_BYTES, left))
        check_whole(job, placement, limit, grams)
    return grams


def _within_blocks(
    job: Job, placement: Placement, limit: int, asked: int | None, grams: int | None
) -> int:
    """What Grams may take beside one block: half of what the rest leaves, as hidden states may take
    memory too. Raises RecipeError.
    """
    targets = job.selection.targets
    blocks = trunk(skeleton(job.weights.shards[0].parent), job.recipe, job.stats)
    rest = blockwise_bytes(job.weights, blocks, targets, placement.dtype.itemsize)
    largest = max(gram_bytes(target) for target in targets.values())
    if asked is None:
        grams = max(1, min(grams or DEFAULT_GRAM_BYTES, (limit - rest) // 2))
    needs = rest + max(largest, grams or 0)
    if needs > limit:
        raise RecipeError(
            f"--max-memory {formats.size(limit)}: this recipe updates {job.name} block by block, "
            f"and takes {formats.size(needs)} in {_name(placement)}, hidden states on the disk; "
            "allow more, or pass --dtype bfloat16 or a smaller --gram-memory (--preset paper reads "
            "one weight at a time)"
        )
    return grams or DEFAULT_GRAM_BYTES


def whole_bytes(job: Job, placement: Placement, max_gram_bytes: int | None) -> int:
    """What updating a denoiser takes that is loaded whole."""
    targets, size = job.selection.targets, job.selection.num_parameters
    return update_bytes(targets, job.recipe, size, placement.dtype.itemsize, max_gram_bytes)


def check_whole(
    job: Job, placement: Placement, limit: int | None, max_gram_bytes: int | None
) -> None:
    """Refuse a denoiser that has to be loaded whole and does not fit. Raises RecipeError."""
    needs = whole_bytes(job, placement, max_gram_bytes)
    if limit is not None and needs > limit:
        raise RecipeError(
            f"--max-memory {formats.size(limit)}: this recipe loads {job.name} whole, and "
            f"takes {formats.size(needs)} in {_name(placement)}; "
            "allow more, pass --dtype bfloat16 or a smaller --gram-memory, or leave out what "
            "runs the denoiser (--preset paper reads one weight at a time)"
        )


def _name(placement: Placement) -> str:
    return str(placement.dtype).removeprefix("torch.")
