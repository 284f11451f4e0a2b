"""What a run will take, from a short sample of it: bytes, memory, seconds."""

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

from ditprune.checkpoints.locate import ModelFolder
from ditprune.checkpoints.rewrite_tensors import one_torch_thread, read_ahead
from ditprune.checkpoints.weights import Entry, as_tensor, sha256
from ditprune.method.granularity import NM, PerChannel
from ditprune.method.masks import CHUNK_WEIGHTS
from ditprune.method.recipe import Recipe
from ditprune.method.saliency.power import Magnitude
from ditprune.pruning.job import Job, num_bytes
from ditprune.pruning.loop import prune_weight_
from ditprune.pruning.plan import can_score
from ditprune.targets.discover import Target
from ditprune.targets.matrix import as_matrix

_SAMPLE_S = 2.0
_SCORE, _FLAG = 4, 1  # bytes of a float32 and of a bool
_NOT_ROWWISE = 4  # results in memory at once where a saliency looks at the whole tensor


@dataclass(frozen=True)
class Estimate:
    """Of a whole run of `ditprune prune`.

    Args:
        num_bytes: written, without the manifests and the card; exact.
        peak_bytes: resident at most.
        seconds: from the start of the command.
    """

    num_bytes: int
    peak_bytes: int
    seconds: float


def estimate(model: ModelFolder, jobs: Sequence[Job], recipe: Recipe, place: Path) -> Estimate:
    """What pruning into a folder below `place` will take; nothing stays there.

    To be called first: what the process has taken so far counts as what every run takes to begin.
    """
    start_s, own_bytes = time.process_time(), psutil.Process().memory_info().rss
    total = num_bytes(model, jobs)
    seconds = total * _seconds_per_byte(jobs, recipe, place)
    work_bytes = max(_work_bytes(job, recipe) for job in jobs)
    return Estimate(total, own_bytes + work_bytes, start_s + seconds)


def _work_bytes(job: Job, recipe: Recipe) -> int:
    """The most that three tensors in a row take, and the work on the middle one."""
    targets = _by_tensor(job)
    entries = list(job.weights.in_order())
    sizes = [0, *(entry.size_bytes for entry in entries), 0]
    return max(
        sum(sizes[i : i + 3]) + _select_bytes(targets.get(entry.name), recipe)
        for i, entry in enumerate(entries)
    )


def _select_bytes(target: Target | None, recipe: Recipe) -> int:
    """Scores, and beside them what makes them or what finds the k best."""
    if target is None:
        return 0
    size = target.num_weights
    scores = _SCORE * size
    if not getattr(recipe.saliency, "is_rowwise", False):
        return _NOT_ROWWISE * scores
    if isinstance(recipe.granularity, (NM, PerChannel)):
        return scores + _FLAG * size + _SCORE * min(size, CHUNK_WEIGHTS)
    return scores + scores  # the second is partitioned


def _seconds_per_byte(jobs: Sequence[Job], recipe: Recipe, place: Path) -> float:
    """By doing some of it: read, score, select, hash, write and bring to the disk."""
    num_bytes, begin = 0, time.perf_counter()
    with tempfile.TemporaryFile(dir=place) as file:
        for job in jobs:
            num_bytes += _sample(job, recipe, file, _SAMPLE_S / len(jobs))
        streamed = time.perf_counter()
        os.fsync(file.fileno())
        synced = time.perf_counter()
    # The disk takes what is written while pruning goes on, so the slower of both counts.
    return max(streamed - begin, synced - streamed) / num_bytes


def _sample(job: Job, recipe: Recipe, file: BinaryIO, limit_s: float) -> int:
    """Prune targets here and there into `file` for a while; how many bytes it were."""
    targets, stats = _by_tensor(job), job.stats
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
        for entry, raw in read_ahead(entries()):
            weight = as_matrix(as_tensor(raw, entry))
            prune_weight_(targets[entry.name], weight, stats, recipe)
            if behind is not None:
                behind.result()
            behind = writer.submit(write, raw)
            num_bytes += raw.nbytes
    file.flush()
    return num_bytes


def _by_tensor(job: Job) -> Mapping[str, Target]:
    return {f"{name}.weight": target for name, target in job.selection.targets.items()}
