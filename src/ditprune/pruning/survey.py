"""What has to be known of all scores of a weight, before the first of its weights goes?

One pass over the scores says how much its output channels differ, which chooses the groups, whether
the dtype holds the scores, and from which score on weights stay where all of them are one group.
The next pass compares. So no more scores are in memory than a few rows have.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from ditprune.checkpoints.rewrite_tensors import one_torch_thread
from ditprune.checkpoints.statistics_file import Statistics
from ditprune.method.granularity import heterogeneity, heterogeneity_of_means
from ditprune.method.recipe import Recipe
from ditprune.method.thresholds import Bracket, Part, Search, Threshold
from ditprune.pruning.scoring import Computed, row_chunks, scores_of
from ditprune.targets.discover import Target

_NUM_WORKERS = 2
_SAMPLE = 1 << 16  # scores in a sample at most; a bracket then holds 1.6 % of all
_BUFFER = 1 << 11  # numbers; for longer rows numpy then broadcasts without copies
_ONE_IN = 64  # scores are in the sample of a smaller weight

Piece = TypeVar("Piece")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Survey:
    """Of the scores of one weight.

    Args:
        g_out: heterogeneity of its output channels.
        threshold: of all weights as one group; None where it was not asked for, or not found.
    """

    g_out: float
    threshold: Threshold | None


def survey(computed: Computed, num_keep: int | None) -> Survey | None:
    """One pass over the scores; None where their dtype does not tell them apart.

    Args:
        num_keep: of all weights as one group; None if that is not asked.
    """
    num_weights, num_in = computed.weight.numel(), computed.weight.shape[1]
    bracket = search = None
    if num_keep is not None:
        bracket = Bracket.around(_sample(computed), num_keep / num_weights)
        search = Search(num_weights, num_keep)

    def look(rows: slice) -> tuple[Tensor, Part | None] | None:
        scores = computed.rows(rows)
        if not computed.are_told_apart(rows, scores):
            return None
        part = None
        if bracket is not None:
            part = bracket.part(scores.reshape(-1).numpy(), rows.start * num_in)
        return scores.mean(dim=1), part

    means: list[Tensor] = []
    for seen in side_by_side(look, row_chunks(computed.weight)):
        if seen is None:
            return None
        means.append(seen[0])
        if search is not None and seen[1] is not None:
            search.add(seen[1])
    g_out = heterogeneity_of_means(torch.cat(means))
    return Survey(g_out, None if search is None else search.threshold())


def g_out_of(target: Target, weight: Tensor, stats: Statistics | None, recipe: Recipe) -> float:
    """Heterogeneity of a weight's output channels. Raises TargetError as `scores_of` does."""
    computed = Computed.of(target, weight, stats, recipe)
    seen = None if computed is None else survey(computed, None)
    return heterogeneity(scores_of(target, weight, stats, recipe)) if seen is None else seen.g_out


def _sample(computed: Computed) -> np.ndarray[Any, Any]:
    """Scores at places that are random and the same each time."""
    num_weights, num_in = computed.weight.numel(), computed.weight.shape[1]
    size = min(_SAMPLE, -(-num_weights // _ONE_IN))
    places = np.random.Generator(np.random.PCG64(0)).integers(0, num_weights, size)
    return computed.at(*np.divmod(places, num_in)).numpy()


def side_by_side(work: Callable[[Piece], Result], pieces: Iterable[Piece]) -> list[Result]:
    """The results in order, of two threads; the same as of one."""
    rest, results = enumerate(list(pieces)), dict[int, Result]()

    @torch.no_grad()  # each thread has a grad mode
    def take_part() -> None:
        np.setbufsize(_BUFFER)  # which each thread has too
        for number, piece in rest:
            results[number] = work(piece)

    _keep_freed_memory()
    with one_torch_thread(), ThreadPoolExecutor(_NUM_WORKERS) as workers:
        for part in [workers.submit(take_part) for _ in range(_NUM_WORKERS)]:
            part.result()
    return [results[number] for number in range(len(results))]


@cache
def _keep_freed_memory() -> None:
    """Have the C library keep the memory of one piece for the next.

    The system clears new memory, which takes longer than what is done in it. glibc keeps what is
    freed once something larger was.
    """
    torch.empty(16 << 20, dtype=torch.uint8)
