"""What does the page show of the samples and of the layers?

Samples stand worst first, each pruned model against dense. Layers stand in tables with a row for
each role and a column for each depth.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ditprune.reporting.load import DENSE

_SEED_DIGITS = 6
_SHORT = {"layer": "L", "channel": "C"}


@dataclass(frozen=True)
class Shot:
    """One pruned model's image of a sample.

    Args:
        model: the model's index among the pruned ones.
        rank: the sample's index if the model's samples are sorted from the worst.
    """

    model: int
    name: str
    image: str
    ssim: str
    rank: int


@dataclass(frozen=True)
class Sample:
    """One prompt or label with one seed, drawn by all models."""

    index: int
    condition: str
    seed: str
    dense: str
    shots: tuple[Shot, ...]

    @property
    def short_seed(self) -> str:
        """Its first digits; seeds have up to 19."""
        return self.seed if len(self.seed) <= _SEED_DIGITS else f"{self.seed[:_SEED_DIGITS]}…"


def samples_of(
    gallery: Sequence[Mapping[str, Any]], names: Sequence[str], most_bytes: int
) -> list[Sample]:
    """The samples whose images fit, in the order of the first pruned model, the worst first.

    In results.json the worst samples of all models stand first, so the last ones are left out.
    """
    fitting = _that_fit(gallery, names, most_bytes)
    ranks = [_ranks(fitting, name) for name in names]
    samples = []
    for number, sample in enumerate(fitting):
        ssim = {
            name: "" if value is None else f"{value:.3f}" for name, value in sample["ssim"].items()
        }
        shots = tuple(
            Shot(index, name, sample["images"][name], ssim.get(name, ""), rank[number])
            for index, (name, rank) in enumerate(zip(names, ranks, strict=True))
            if name in sample["images"]
        )
        index, dense = int(sample["index"]), sample["images"][DENSE]
        samples.append(Sample(index, str(sample["condition"]), str(sample["seed"]), dense, shots))
    return sorted(samples, key=lambda sample: sample.shots[0].rank)


def _that_fit(
    gallery: Sequence[Mapping[str, Any]], names: Sequence[str], most_bytes: int
) -> list[Mapping[str, Any]]:
    fitting, size_bytes = [], 0
    for sample in gallery:
        shown = [name for name in (DENSE, *names) if name in sample["images"]]
        size_bytes += sum(len(sample["images"][name]) for name in shown)
        if size_bytes > most_bytes:
            break
        if len(shown) > 1:
            fitting.append(sample)
    return fitting


def _ranks(gallery: Sequence[Mapping[str, Any]], name: str) -> list[int]:
    """The rank of each sample; those without a number for this model come last."""
    numbers = [sample["ssim"].get(name) for sample in gallery]
    badness = [math.inf if ssim is None else ssim for ssim in numbers]
    order = sorted(range(len(gallery)), key=badness.__getitem__)
    return [order.index(number) for number in range(len(gallery))]


@dataclass(frozen=True)
class Cell:
    """One layer.

    Args:
        share: how strong its shade is, 0 to 1; None for no shade.
        group: which weights competed, as a letter or as N:M; `group_name` is the full word.
    """

    text: str
    share: float | None
    name: str
    shape: str
    group: str = ""
    group_name: str = ""


@dataclass(frozen=True)
class Table:
    """Cells by role and depth of one list of blocks; None if a block has no such layer."""

    blocks: str
    depths: tuple[int, ...]
    rows: tuple[tuple[str, tuple[Cell | None, ...]], ...]


def sparsity_tables(targets: Sequence[Mapping[str, Any]]) -> list[Table]:
    """The removed share of every layer, in percent, shaded from 0 to 100."""

    def cell(target: Mapping[str, Any]) -> Cell:
        share = target["sparsity"]
        return Cell(f"{100 * share:.3g}", share, target["name"], _shape(target))

    return _tables(targets, cell)


def heterogeneity_tables(targets: Sequence[Mapping[str, Any]]) -> list[Table]:
    """G_out of every layer, shaded from this model's least to its most, and which weights competed.

    There is no table if neither is known for any layer.
    """
    if all(target["g_out"] is None and target["granularity"] is None for target in targets):
        return []
    known = [target["g_out"] for target in targets if target["g_out"] is not None]
    low, high = (min(known), max(known)) if known else (0.0, 0.0)

    def cell(target: Mapping[str, Any]) -> Cell:
        g_out, group = target["g_out"], target["granularity"]
        share = (g_out - low) / (high - low) if g_out is not None and high > low else None
        text = "–" if g_out is None else f"{g_out:.2f}"
        short = "" if group is None else _SHORT.get(group, group)
        return Cell(text, share, target["name"], _shape(target), short, group or "")

    return _tables(targets, cell)


def _shape(target: Mapping[str, Any]) -> str:
    return "×".join(f"{int(number)}" for number in target["shape"])


def _tables(targets: Sequence[Mapping[str, Any]], cell: Callable[..., Cell]) -> list[Table]:
    tables = []
    for blocks in dict.fromkeys(map(_blocks_of, targets)):
        group = [target for target in targets if _blocks_of(target) == blocks]
        depths = sorted({int(target["depth"]) for target in group})
        roles = dict.fromkeys(target["role"] for target in group)
        cells = {(target["role"], int(target["depth"])): cell(target) for target in group}
        rows = ((role, tuple(cells.get((role, depth)) for depth in depths)) for role in roles)
        tables.append(Table(blocks, tuple(depths), tuple(rows)))
    return tables


def _blocks_of(target: Mapping[str, Any]) -> str:
    """`transformer_blocks` of `transformer_blocks.3.attn1.to_q`."""
    stem = target["name"].removesuffix(target["role"]).rstrip(".")
    return stem.rpartition(".")[0] or stem
