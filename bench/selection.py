"""Claim: selecting is linear; ≥ 4× (per channel) and ≥ 10× (per layer) faster than a stable sort.

    python bench/selection.py

One 12288×3072 bfloat16 layer, the largest shape of FLUX.1's attention and MLP but one. Each row
compares `keep_best` with a stable `torch.sort` of the same scores, in the same run, best of three,
and checks that the masks are identical.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from ditprune.method.granularity import NM, PerChannel, PerLayer
from ditprune.method.masks import keep_best
from ditprune.method.saliency.power import STW, Magnitude

SHAPE, SPARSITY, REPEATS = (12288, 3072), 0.5, 3


def sorted_mask(scores_GK: Tensor, num_keep: int) -> Tensor:
    """The definition: a stable ascending sort of each group, the first entries removed."""
    order = torch.sort(scores_GK, dim=1, stable=True).indices
    num_remove = scores_GK.shape[1] - num_keep
    keep_GK = torch.ones(scores_GK.shape, dtype=torch.bool)
    return keep_GK.scatter_(1, order[:, :num_remove], False)


def sort_only(scores_GK: Tensor, _num_keep: int) -> Tensor:
    """The sort alone, which is what a mask from it costs at the least."""
    return torch.sort(scores_GK, dim=1, stable=True).values


def best_seconds(work: Callable[[], Tensor]) -> float:
    """The fastest of a few runs."""
    seconds = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def main() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = (torch.randn(SHAPE, generator=generator) * 0.02).bfloat16()
    norm = torch.rand(SHAPE[1], generator=generator) * 10
    table = Table("scores", "groups", "torch.sort s", "keep_best s", "ratio", "same mask", box=None)
    for saliency in (STW(), Magnitude()):
        scores = saliency(weight, norm)
        for groups in (PerChannel(), PerLayer(), NM(2, 4)):
            num_groups, size = groups.group_shape(*SHAPE)
            scores_GK = scores.view(num_groups, size)
            num_keep = groups.num_keep(size, SPARSITY)
            reference = best_seconds(lambda s=scores_GK, k=num_keep: sort_only(s, k))
            ours = best_seconds(lambda s=scores_GK, k=num_keep: keep_best(s, k))
            same = torch.equal(keep_best(scores_GK, num_keep), sorted_mask(scores_GK, num_keep))
            table.add_row(
                saliency.name, groups.name, f"{reference:.3f}", f"{ours:.3f}",
                f"{reference / ours:.1f}×", "yes" if same else "NO",
            )  # fmt: skip
    console = Console(highlight=False, soft_wrap=True)
    console.print(table)
    machine = f"{torch.get_num_threads()} threads, torch {torch.__version__}"
    console.print(f"{SHAPE[0]}×{SHAPE[1]} bfloat16, {machine}")


if __name__ == "__main__":
    main()
