"""What a run will take, before it begins: bytes, memory and time.

`forecast_run` prunes for two seconds and scales that up. `forecast_updates` counts what updating
weights takes from shapes, where whole calls of the denoiser run; `forecast_blocks.py` where its
blocks run one by one.
"""

from __future__ import annotations

import os
import random
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

import psutil

from ditprune.calibration.observe import stages
from ditprune.checkpoints.locate import ModelFolder
from ditprune.checkpoints.past_cache import is_too_large
from ditprune.checkpoints.read_ahead import read_ahead
from ditprune.checkpoints.rewrite_tensors import one_torch_thread
from ditprune.checkpoints.weights import Entry, as_tensor, sha256
from ditprune.method.allocation import MEASURED
from ditprune.method.recipe import Recipe
from ditprune.method.saliency.power import Magnitude
from ditprune.pruning.forecast_layers import (
    curve_operations,
    factor_operations,
    gram_operations,
    solve_operations,
)
from ditprune.pruning.job import Job, num_bytes
from ditprune.pruning.rates import Rates
from ditprune.pruning.row_cost import RowCost
from ditprune.pruning.scoring import can_score
from ditprune.pruning.update.budgets import LEVELS
from ditprune.pruning.update.grams import enough_rows
from ditprune.pruning.update.judge import NUM_MEASURING_ROWS
from ditprune.pruning.update.memory import update_bytes
from ditprune.pruning.update.prepared import DEFAULT_GRAM_BYTES
from ditprune.pruning.update.share import most_tries
from ditprune.pruning.zeroing import prune_weight_
from ditprune.targets.discover import Target
from ditprune.targets.matrix import as_matrix

_SAMPLE_S = 2.0
_SCORE = 4  # bytes of a float32
_IN_PIECES = 32 << 20  # scores of a few rows, and what makes them, in two threads
_REMEMBERED = 12  # bytes of a score and its position; of one weight in 64
_NOT_ROWWISE = 4  # results in memory at once where a saliency looks at the whole tensor


@dataclass(frozen=True)
class RunForecast:
    """Of a whole run of `ditprune prune`.

    Args:
        num_bytes: written, without the manifests and the card; exact.
        peak_bytes: resident at most.
        seconds: from the start of the command.
    """

    num_bytes: int
    peak_bytes: int
    seconds: float


def forecast_run(model: ModelFolder, jobs: Sequence[Job], folder: Path) -> RunForecast:
    """What pruning into a folder below `folder` will take; nothing stays there.

    To be called first: what the process has taken so far counts as what every run takes to begin.
    """
    start_s, own_bytes = time.process_time(), psutil.Process().memory_info().rss
    total = num_bytes(model, jobs)
    seconds = total * _seconds_per_byte(jobs, folder)
    work_bytes = max(_work_bytes(job) for job in jobs)
    return RunForecast(total, own_bytes + work_bytes, start_s + seconds)


def _work_bytes(job: Job) -> int:
    """The most that three tensors take, and the work on one of them."""
    targets = _by_tensor(job)
    sizes = sorted(entry.size_bytes for entry in job.weights.entries.values())
    return sum(sizes[-3:]) + max(_select_bytes(target, job.recipe) for target in targets.values())


def _select_bytes(target: Target, recipe: Recipe) -> int:
    """What scores take, or makes them, or finds the k best."""
    if not getattr(recipe.saliency, "is_rowwise", False):
        return _NOT_ROWWISE * _SCORE * target.num_weights
    return _IN_PIECES + _REMEMBERED * target.num_weights // 64


def _seconds_per_byte(jobs: Sequence[Job], folder: Path) -> float:
    """By doing some of it: read, score, select, hash, write and bring to the disk."""
    num_bytes, begin = 0, time.perf_counter()
    with tempfile.TemporaryFile(dir=folder) as file:
        for job in jobs:
            num_bytes += _sample(job, file, _SAMPLE_S / len(jobs))
        streamed = time.perf_counter()
        os.fsync(file.fileno())
        synced = time.perf_counter()
    # The disk takes what is written while pruning goes on, so the slower of both counts.
    return max(streamed - begin, synced - streamed) / num_bytes


def _sample(job: Job, file: BinaryIO, limit_s: float) -> int:
    """Prune targets here and there into `file` for a while; how many bytes it were."""
    targets, stats, recipe = _by_tensor(job), job.stats, job.recipe
    if recipe.max_error is not None:  # any share takes as long
        recipe = replace(recipe, max_error=None)
    if not can_score(recipe, stats):
        recipe, stats = replace(recipe, saliency=Magnitude()), None
    names = sorted(targets)
    random.Random(0).shuffle(names)
    until, num_bytes = time.perf_counter() + limit_s, 0

    def entries() -> Iterator[Entry]:
        for name in names:
            yield job.weights.entries[name]
            if time.perf_counter() > until:
                return

    def write(raw: memoryview) -> None:
        sha256(raw)
        file.write(raw)

    with one_torch_thread(), ThreadPoolExecutor(1) as writer:
        behind: Future[None] | None = None
        past_cache = is_too_large(2 * job.weights.size_bytes)
        for entry, raw in read_ahead(entries(), past_cache):
            weight = as_matrix(as_tensor(raw, entry))
            prune_weight_(targets[entry.name], weight, stats, recipe)
            if behind is not None:
                behind.result()
            behind = writer.submit(write, raw)
            num_bytes += raw.nbytes
        if behind is not None:
            behind.result()
    file.flush()
    return num_bytes


def _by_tensor(job: Job) -> Mapping[str, Target]:
    return {f"{name}.weight": target for name, target in job.selection.targets.items()}


_BACKWARD = 2  # times the arithmetic of a forward pass


@dataclass(frozen=True)
class UpdateForecast:
    """Of a recipe.

    Args:
        num_operations: by stage.
        num_passes: over the calibration calls, for Grams.
        peak_bytes: of weights, Grams and what training keeps, without activations.
    """

    num_operations: Mapping[str, float]
    num_passes: int
    peak_bytes: int

    def seconds(self, rates: Rates) -> dict[str, float]:
        """By stage."""
        return {stage: number / rates.products for stage, number in self.num_operations.items()}


def forecast_updates(
    targets: Mapping[str, Target], recipe: Recipe, row: RowCost, num_rows: int,
    num_parameters: int, max_gram_bytes: int | None = None, itemsize: int = 4,
) -> UpdateForecast:  # fmt: skip
    """What a recipe takes with so many rows of calibration calls, and `itemsize` bytes a weight.

    Raises RecipeError for `max_gram_bytes` where it collects no Grams.
    """
    measures = recipe.allocation in MEASURED
    cut = stages(targets, recipe.packages, max_gram_bytes or DEFAULT_GRAM_BYTES)
    tries = most_tries(recipe)
    rounds = 1 + tries + measures if len(cut) > 1 else 1 + (tries > 0)
    passes = len(cut) * rounds if recipe.needs_grams else 0
    once = sum(
        factor_operations(target, recipe) + solve_operations(target, recipe)
        for target in targets.values()
    )
    num_seen, each = num_rows, 1
    if recipe.objective == "output":
        per_row = {name: row.num_tokens.get(name, 0) for name in targets}
        num_seen, each = min(num_rows, enough_rows(targets, per_row)), 1 + _BACKWARD
    work = {
        "Grams": passes * num_seen * each * row.num_operations
        + (passes / len(cut)) * num_seen * gram_operations(targets, row),
        "share": tries * (once + NUM_MEASURING_ROWS * row.num_operations),
        "budgets": _budget_operations(targets, once, recipe, row),
        "layers": once * (2 if recipe.mask == "refinement" else 1),
        "refinement": _training_operations(recipe, row, num_rows),
    }
    return UpdateForecast(
        {name: value for name, value in work.items() if value},
        passes,
        update_bytes(targets, recipe, num_parameters, itemsize, max_gram_bytes),
    )


def _budget_operations(
    targets: Mapping[str, Target], once: float, recipe: Recipe, row: RowCost
) -> float:
    rows = NUM_MEASURING_ROWS * row.num_operations
    if recipe.allocation == "sensitivity":
        return len(LEVELS) * (once + len(targets) * rows)
    if recipe.allocation != "proxy":
        return 0.0
    curves = sum(
        factor_operations(target, recipe) + curve_operations(target, recipe)
        for target in targets.values()
    )
    return curves + (1 + _BACKWARD) * rows


def _training_operations(recipe: Recipe, row: RowCost, num_rows: int) -> float:
    if recipe.refinement is None:
        return 0.0
    rows = recipe.refinement.num_steps * min(recipe.refinement.rows_of_whole, num_rows)
    return rows * (2 + _BACKWARD) * row.num_operations
