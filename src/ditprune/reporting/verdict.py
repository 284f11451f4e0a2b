"""What do the numbers say about a pruned model? One line, by rule.

Quality is measured by the metrics against real images, against the condition, or on the images
alone. A model is worse if its 95 % interval and the dense model's lie apart in the bad direction.
Where they overlap, this many images do not tell the two apart, which proves no equality.

Likeness is measured by the metrics on same-seed images. A model is close to dense only if the whole
interval lies on the good side of `VISIBLE_SSIM` and `VISIBLE_LPIPS`, and visibly different if the
value lies on the bad side. It is *visibly worse* only if the whole interval does. Both limits are
conventions.

Images with NaN or Inf come first: if dense has some, nothing is judged; a model that has some
while dense has none is visibly worse, whatever its numbers say.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from ditprune.reporting.formats import point, with_interval
from ditprune.reporting.load import DENSE

VISIBLE_SSIM = 0.9
VISIBLE_LPIPS = 0.1
# From the best to the worst that can be said.
LEVELS = (
    "not told apart from dense by {images}",
    "close to dense image by image, quality not compared",
    "not told apart from dense in quality by {images}, image by image not shown to be close",
    "image by image not shown to be close to dense, quality not compared",
    "other images than dense, not told apart in quality by {images}",
    "told apart from dense by {images}, though not as worse",
    "visibly different from dense, quality not compared",
    "not judged",
    "measurably worse than dense",
    "visibly worse than dense",
)
(
    _SAME, _CLOSE, _UNSURE, _UNSURE_ALONE, _OTHER, _APART, _DIFFERENT, _UNJUDGED, _WORSE,
    _VISIBLY_WORSE,
) = range(len(LEVELS))  # fmt: skip


class Likeness(IntEnum):
    """How same-seed images lie to the limits: on the good side, across, beyond, wholly beyond."""

    CLOSE = 0
    UNSURE = 1
    DIFFERENT = 2
    SURELY_DIFFERENT = 3


# The level where no metric of quality is worse: if one was compared, and if none was.
_WITHOUT_WORSE = {
    None: (_SAME, _UNJUDGED),
    Likeness.CLOSE: (_SAME, _CLOSE),
    Likeness.UNSURE: (_UNSURE, _UNSURE_ALONE),
    Likeness.DIFFERENT: (_OTHER, _DIFFERENT),
    Likeness.SURELY_DIFFERENT: (_OTHER, _DIFFERENT),
}


@dataclass(frozen=True)
class Verdict:
    """One of `LEVELS`, by its index, and the numbers that lead to it."""

    rank: int
    reasons: tuple[str, ...]
    num_images: int = 0

    @property
    def level(self) -> str:
        """The level in words."""
        return LEVELS[self.rank].format(images=images_text(self.num_images))

    @property
    def text(self) -> str:
        """The level with its reasons, one line."""
        return f"{self.level}: {'; '.join(self.reasons)}" if self.reasons else self.level


def judge(
    model: Mapping[str, Any], dense: Mapping[str, Any], metrics: Mapping[str, Any],
    num_images: int = 0,
) -> Verdict:  # fmt: skip
    """The verdict on one pruned model.

    Args:
        num_images: how many images the numbers are from; 0 if it is not known.
    """
    rank, reasons = _of_spoiled(model, dense) or _of_numbers(model, dense, metrics)
    return Verdict(rank, tuple(reasons), num_images)


def verdicts_of(results: Mapping[str, Any]) -> dict[str, Verdict]:
    """The verdict on every pruned model of checked results, by name."""
    dense, *pruned = results["models"]
    num_images = num_images_of(results["protocol"])
    return {m["name"]: judge(m, dense, results["metrics"], num_images) for m in pruned}


def headline(verdicts: Mapping[str, Verdict]) -> list[tuple[str, list[str]]]:
    """The names of the pruned models by level, best first, as (level, names)."""
    groups: dict[str, list[str]] = {}
    for name, verdict in sorted(verdicts.items(), key=lambda item: item[1].rank):
        groups.setdefault(verdict.level, []).append(name)
    return list(groups.items())


def num_images_of(protocol: Mapping[str, Any]) -> int:
    """How many images the numbers are from; 0 if the protocol does not say."""
    number = protocol.get("num_images")
    return number if isinstance(number, int) and not isinstance(number, bool) else 0


def images_text(num_images: int) -> str:
    """`60 images`."""
    if num_images < 1:
        return "these images"
    return "1 image" if num_images == 1 else f"{num_images:,} images"


def _of_spoiled(
    model: Mapping[str, Any], dense: Mapping[str, Any]
) -> tuple[int, Sequence[str]] | None:
    looked_at = ((dense, "the dense model's", _UNJUDGED), (model, "its own", _VISIBLY_WORSE))
    for row, whose, rank in looked_at:
        # Absent in results written before it was counted.
        if number := row.get("num_spoiled"):
            return rank, [f"{number:,} of {whose} images are not finite (NaN or Inf)"]
    return None


def _of_numbers(
    model: Mapping[str, Any], dense: Mapping[str, Any], metrics: Mapping[str, Any]
) -> tuple[int, Sequence[str]]:
    worse: list[str] = []
    better: list[str] = []
    level: list[str] = []
    for key, metric in metrics.items():
        if metric["against"] == DENSE or metric["better"] == "none":
            continue
        mine, theirs = (row["metrics"].get(key) for row in (model, dense))
        if not _has_interval(mine) or not _has_interval(theirs):
            continue
        above, below = mine["low"] > theirs["high"], mine["high"] < theirs["low"]
        is_worse = above if metric["better"] == "lower" else below
        said = worse if is_worse else better if above or below else level
        said.append(f"{metric['title']} {point(mine, metric)} against {point(theirs, metric)}")
    likeness, words = _likeness(model, metrics)
    reasons = [*worse, *(f"{text} (better than dense, no gain to count on)" for text in better)]
    if not worse and level:
        reasons.append(f"intervals overlap for {', '.join(level)}")
    if worse:
        surely = likeness == Likeness.SURELY_DIFFERENT
        return _VISIBLY_WORSE if surely else _WORSE, [*reasons, *words]
    compared, alone = _WITHOUT_WORSE[likeness]
    error = model["metrics"].get("relative_error")
    if likeness is None and not (better or level) and error and "relative_error" in metrics:
        shown = with_interval(error, metrics["relative_error"])
        words = [f"relative error of the predicted noise {shown}"]
    return _APART if better else compared if level else alone, [*reasons, *words]


def _has_interval(measured: Any) -> bool:
    return measured is not None and measured["low"] is not None and measured["high"] is not None


def _likeness(
    model: Mapping[str, Any], metrics: Mapping[str, Any]
) -> tuple[Likeness | None, Sequence[str]]:
    """How alike same-seed images are by SSIM and LPIPS, the worse of both; and both in words."""
    said, grades = [], []
    for key, limit, sign in (("ssim", VISIBLE_SSIM, -1), ("lpips", VISIBLE_LPIPS, 1)):
        measured = model["metrics"].get(key)
        if key not in metrics or measured is None:
            continue
        ends = [measured[end] for end in ("value", "low", "high") if measured[end] is not None]
        num_beyond = sum(sign * end > sign * limit for end in ends)
        is_beyond = sign * measured["value"] > sign * limit
        grade = Likeness.UNSURE if num_beyond else Likeness.CLOSE
        grade = Likeness.DIFFERENT if is_beyond else grade
        grades.append(Likeness.SURELY_DIFFERENT if num_beyond == len(ends) else grade)
        side = f"{'below' if sign < 0 else 'above'} {limit}" if is_beyond else ""
        text = f"same-seed {metrics[key]['title']} {with_interval(measured, metrics[key])}"
        said.append(f"{text}, {side}" if side else text)
    return max(grades, default=None), said
