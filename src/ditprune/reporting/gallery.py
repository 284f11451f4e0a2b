"""Same-seed samples, each pruned model against dense, the worst of the model shown first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ditprune.reporting.load import DENSE


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
