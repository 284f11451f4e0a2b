"""What does the page show of the samples and of the layers?

Samples stand worst first, each pruned model against dense. Layers stand in tables with a row for
each role and a column for each depth.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ditprune.reporting.load import DENSE

_SHORT = {"layer": "L", "channel": "C"}


@dataclass(frozen=True)
class Shot:
    """One pruned model's image of a sample.

    Args:
        model: the model's place among the pruned ones.
        rank: the sample's place when the model's samples are sorted from the worst.
    """

    model: int
    name: str
    image: str
    ssim: str
    rank: int


@dataclass(frozen=True)
class Sample:
    """One prompt or label with one seed, drawn by all."""

    index: int
    condition: str
    seed: str
    dense: str
    shots: tuple[Shot, ...]


def samples_of(
    gallery: Sequence[Mapping[str, Any]], names: Sequence[str], most_bytes: int
) -> list[Sample]:
    """The samples whose images fit, in the order of the first pruned model, the worst first.

    Those that do not fit are the last of results.json, where the worst of all stand first.
    """
    kept = _that_fit(gallery, names, most_bytes)
    ranks = [_ranks(kept, name) for name in names]
    samples = [
        Sample(
            int(one["index"]), str(one["condition"]), str(one["seed"]), one["images"][DENSE],
            tuple(
                Shot(model, name, one["images"][name], _ssim(one, name), ranks[model][number])
                for model, name in enumerate(names)
                if name in one["images"]
            ),
        )
        for number, one in enumerate(kept)
    ]  # fmt: skip
    return sorted(samples, key=lambda sample: sample.shots[0].rank)


def _that_fit(
    gallery: Sequence[Mapping[str, Any]], names: Sequence[str], most_bytes: int
) -> list[Mapping[str, Any]]:
    kept, size_bytes = [], 0
    for one in gallery:
        shown = [name for name in (DENSE, *names) if name in one["images"]]
        size_bytes += sum(len(one["images"][name]) for name in shown)
        if size_bytes > most_bytes:
            break
        if len(shown) > 1:
            kept.append(one)
    return kept


def _ranks(gallery: Sequence[Mapping[str, Any]], name: str) -> list[int]:
    """Of each sample; those without a number for this model come last."""

    def badness(number: int) -> float:
        ssim = gallery[number]["ssim"].get(name)
        return float("inf") if ssim is None else ssim

    order = sorted(range(len(gallery)), key=badness)
    return [order.index(number) for number in range(len(gallery))]


def _ssim(one: Mapping[str, Any], name: str) -> str:
    ssim = one["ssim"].get(name)
    return "" if ssim is None else f"{ssim:.3f}"


@dataclass(frozen=True)
class Cell:
    """One layer.

    Args:
        share: of the shade that it gets, 0–1; None for none.
        group: who competed in it, in a letter or as N:M; `group_name` in full.
    """

    text: str
    share: float | None
    name: str
    shape: str
    group: str = ""
    group_name: str = ""


@dataclass(frozen=True)
class Table:
    """Cells by role and depth of one list of blocks; None where a block has no such layer."""

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
    """G_out of every layer, shaded from the least to the most of this model, with who competed.

    No table where neither is known of any layer.
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


def _tables(targets: Sequence[Mapping[str, Any]], cell: Any) -> list[Table]:
    lists: dict[str, list[Mapping[str, Any]]] = {}
    for target in targets:
        lists.setdefault(_blocks_of(target), []).append(target)
    return [_table(blocks, own, cell) for blocks, own in lists.items()]


def _table(blocks: str, targets: Sequence[Mapping[str, Any]], cell: Any) -> Table:
    depths = sorted({int(target["depth"]) for target in targets})
    roles = dict.fromkeys(target["role"] for target in targets)
    cells = {(target["role"], int(target["depth"])): cell(target) for target in targets}
    rows = ((role, tuple(cells.get((role, depth)) for depth in depths)) for role in roles)
    return Table(blocks, tuple(depths), tuple(rows))


def _blocks_of(target: Mapping[str, Any]) -> str:
    """`transformer_blocks` of `transformer_blocks.3.attn1.to_q`."""
    stem = target["name"].removesuffix(target["role"]).rstrip(".")
    return stem.rpartition(".")[0] or stem
