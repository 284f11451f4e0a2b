"""How is a denoiser of a folder updated block by block, its weights on disk?"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from torch import Tensor

from ditprune.calibration.workers import Worker
from ditprune.checkpoints.skeleton import skeleton
from ditprune.denoiser.blockwise.residence import OnDisk
from ditprune.denoiser.replay import fitting, run_call
from ditprune.method.recipe import Recipe
from ditprune.progress import Progress, silent
from ditprune.pruning.job import Job
from ditprune.pruning.plan import read_module
from ditprune.pruning.update.blockwise.engine import update_blocks
from ditprune.pruning.update.blockwise.results import FolderResults, WrittenBlocks
from ditprune.pruning.update.blockwise.room import blockwise_bytes
from ditprune.pruning.update.blockwise.way import Ground, run_on, streams, trunk
from ditprune.pruning.update.folder import (
    Loading,
    Source,
    UpdatedTensors,
    calls_of,
    save_updates,
    stored_update,
    updated_tensors,
)
from ditprune.pruning.update.layers import TargetUpdate, prepare_layers, warn_of_few
from ditprune.pruning.update.memory import check_whole, whole_bytes
from ditprune.pruning.update.prepared import DEFAULT_GRAM_BYTES, UpdateInputs
from ditprune.pruning.update.share import Chosen
from ditprune.pruning.update.update import (
    RefinementResult,
    Updates,
    check_has_calls,
    with_tail,
)
from ditprune.targets.discover import Target
from ditprune.targets.matrix import as_matrix


def updates_of(
    loading: Loading, recipe: Recipe, file: Path, progress: Progress, chosen: Chosen | None = None,
    worker: Worker | None = None,
) -> UpdatedTensors:  # fmt: skip
    """What `updated_tensors` gives, block by block where denoiser and recipe allow it.

    Args:
        file: of all updates together; those of blocks are in a folder of its name.
    """
    if chosen is None and not file.is_file():
        folder = folder_of(file)
        updates = updated_in_blocks(loading, recipe, folder, progress, worker or Worker())
        if updates is not None and _has_tail(loading, recipe):
            updates = _with_tail(loading, recipe, updates, folder, progress)
            save_updates(updates, file)
        if updates is not None:
            return updates
    return updated_tensors(loading, recipe, file, progress, chosen)


def ask_for_help(job: Job, worker: Worker, is_due: bool) -> None:
    """Tell the other processes, which wait for it, whether blocks of this denoiser are to be done;
    the folder for them is there.
    """
    if streams(job.recipe):
        worker.gather(is_due)


def help_with_blocks(loading: Loading, file: Path, worker: Worker) -> None:
    """Do this process's blocks of a denoiser when the first process asks for it."""
    if streams(loading.job.recipe) and worker.gather(False)[0]:
        updated_in_blocks(loading, loading.job.recipe, folder_of(file), silent, worker)


def folder_of(file: Path) -> Path:
    """Where blocks are kept beside a file of all updates."""
    return file.with_suffix("")


def updated_in_blocks(
    loading: Loading, recipe: Recipe, folder: Path, progress: Progress, worker: Worker
) -> UpdatedTensors | None:
    """The new weight of every target with the weights of one block in memory; None where denoiser
    or recipe are not taken so.

    Args:
        folder: where blocks that are done are kept, and found again by the run that goes on.

    Raises RecipeError, StatisticsError, ModelError.
    """
    job, source = loading.job, loading.source
    if source is None or not streams(recipe):
        return None
    folder.mkdir(exist_ok=True)
    root, placement = loading.model.denoisers[job.name], source.placement
    blocks = trunk(skeleton(root), recipe, job.stats)
    residence = OnDisk(root, blocks, placement)
    calls = list(calls_of(job, source))
    check_has_calls(calls)
    with fitting(source.calibration_set.folder), residence.running():
        run_call(residence.denoiser, calls[0])

    def read(target: Target) -> Tensor:
        return as_matrix(job.weights.read(f"{target.name}.weight")).to(placement.device)

    ground = Ground(
        residence.denoiser, residence, read, placement.device, folder,
        _left_bytes(job, blocks, source),
    )  # fmt: skip
    targets, stats = job.selection.targets, job.stats
    most = source.max_gram_bytes
    inputs = UpdateInputs(residence.denoiser, targets, stats, calls, progress, most)
    results = FolderResults(folder, partial(stored_update, job), _has_tail(loading, recipe))
    run = run_on(ground, inputs, recipe, results, worker)
    if run is None:
        check_whole(job, placement, source.max_memory, most)
        return None
    update_blocks(run)
    worker.wait()
    written = WrittenBlocks(folder)
    warn_of_few(written.few, len(targets))
    refined = {run.chain.blocks[number]: told for number, told in written.refined.items()}
    told = RefinementResult.of_blocks(refined) if refined else None
    return UpdatedTensors(written, told)


def _has_tail(loading: Loading, recipe: Recipe) -> bool:
    """Whether all layers train together after the blocks: where memory holds the denoiser."""
    source, settings = loading.source, recipe.refinement
    if source is None or settings is None or settings.of_tail() is None:
        return False
    limit, most = source.max_memory, source.max_gram_bytes
    return limit is None or whole_bytes(loading.job, source.placement, most) <= limit


def _with_tail(
    loading: Loading, recipe: Recipe, written: UpdatedTensors, folder: Path, progress: Progress
) -> UpdatedTensors:
    job, settings = loading.job, recipe.refinement
    assert settings is not None
    results = FolderResults(folder, partial(stored_update, job))
    masks = {n: keep for i in results.numbers() for n, keep in results.masks(i).items()}
    layers = prepare_layers(job.selection.targets, read_module(loading.denoiser), job.stats, recipe)
    updates = {
        name: TargetUpdate(
            as_matrix(weight).float(), masks[name], layers[name], outcome.sparsity,
            outcome.damping or 0.0,
        )
        for name, (weight, outcome) in written.tensors.items()
    }  # fmt: skip
    inputs = loading.inputs(loading.calls, progress)
    done = with_tail(inputs, settings, Updates(updates, written.refined))
    tensors = {name: stored_update(job, name, update) for name, update in done.targets.items()}
    return UpdatedTensors(tensors, done.refined)


def _left_bytes(job: Job, blocks: Sequence[str], source: Source) -> int | None:
    """Memory for hidden states and gradients; None without a limit."""
    if source.max_memory is None:
        return None
    itemsize = source.placement.dtype.itemsize
    needs = blockwise_bytes(job.weights, blocks, job.selection.targets, itemsize)
    return source.max_memory - needs - (source.max_gram_bytes or DEFAULT_GRAM_BYTES)
