"""What do the numbers say about a pruned model? One line, by rule.

Quality is measured by the metrics against real images, against the condition, or on the images
alone. A model is worse if its 95 % interval and the dense model's lie apart in the bad direction.
This is stricter than a test of the difference, so "indistinguishable" holds for this sample and
proves no equality.

Likeness is measured by the metrics on same-seed images. The difference is called visible if the
whole interval lies below `VISIBLE_SSIM` or above `VISIBLE_LPIPS`. Both limits are conventions.

Images with NaN or Inf come first: if dense has some, nothing is judged; a model that has some
while dense has none is visibly worse, whatever its numbers say.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ditprune.reporting.formats import point, with_interval
from ditprune.reporting.load import DENSE

VISIBLE_SSIM = 0.9
VISIBLE_LPIPS = 0.1
# From the best to the worst that can be said.
LEVELS = (
    "indistinguishable from dense in this sample",
    "close to dense image by image, quality not compared",
    "other images than dense, of no measurably lower quality in this sample",
    "visibly different from dense, quality not compared",
    "not judged",
    "measurably worse than dense",
    "visibly worse than dense",
)
_SAME, _CLOSE, _OTHER, _DIFFERENT, _UNJUDGED, _WORSE, _VISIBLY_WORSE = LEVELS


@dataclass(frozen=True)
class Verdict:
    """One of `LEVELS`, and the numbers that lead to it."""

    level: str
    reasons: tuple[str, ...]

    @property
    def text(self) -> str:
        """The level with its reasons, one line."""
        return f"{self.level}: {'; '.join(self.reasons)}" if self.reasons else self.level


def judge(
    model: Mapping[str, Any], dense: Mapping[str, Any], metrics: Mapping[str, Any]
) -> Verdict:
    """The verdict on one pruned model."""
    return _of_spoiled(model, dense) or _of_numbers(model, dense, metrics)


def headline(verdicts: Mapping[str, Verdict]) -> list[tuple[str, list[str]]]:
    """The names of the pruned models by level, best first, as (level, names)."""
    names = {level: [n for n, v in verdicts.items() if v.level == level] for level in LEVELS}
    return [(level, alike) for level, alike in names.items() if alike]


def num_images_of(protocol: Mapping[str, Any]) -> int:
    """How many images the numbers are from; 0 if the protocol does not say."""
    number = protocol.get("num_images")
    return number if isinstance(number, int) and not isinstance(number, bool) else 0


def _of_spoiled(model: Mapping[str, Any], dense: Mapping[str, Any]) -> Verdict | None:
    looked_at = ((dense, "the dense model's", _UNJUDGED), (model, "its own", _VISIBLY_WORSE))
    for row, whose, level in looked_at:
        # Absent in results written before it was counted.
        if number := row.get("num_spoiled"):
            return Verdict(level, (f"{number:,} of {whose} images are not finite (NaN or Inf)",))
    return None


def _of_numbers(
    model: Mapping[str, Any], dense: Mapping[str, Any], metrics: Mapping[str, Any]
) -> Verdict:
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
    likeness, is_different = _likeness(model, metrics)
    reasons = [*worse, *(f"{text} (better than dense, no gain to count on)" for text in better)]
    if not worse and level:
        reasons.append(f"intervals overlap for {', '.join(level)}")
    quality = worse or better or level
    return Verdict(_level(bool(worse), bool(quality), is_different), (*reasons, *likeness))


def _has_interval(measured: Any) -> bool:
    return measured is not None and measured["low"] is not None and measured["high"] is not None


def _level(is_worse: bool, is_compared: bool, is_different: bool | None) -> str:
    if is_worse:
        return _VISIBLY_WORSE if is_different else _WORSE
    if is_compared:
        return _OTHER if is_different else _SAME
    if is_different is None:
        return _UNJUDGED
    return _DIFFERENT if is_different else _CLOSE


def _likeness(
    model: Mapping[str, Any], metrics: Mapping[str, Any]
) -> tuple[Sequence[str], bool | None]:
    """SSIM and LPIPS in words, and whether the difference is visible; None if neither is known."""
    said, is_different = [], None
    for key, limit in (("ssim", VISIBLE_SSIM), ("lpips", VISIBLE_LPIPS)):
        measured = model["metrics"].get(key)
        if key not in metrics or measured is None:
            continue
        said.append(f"same-seed {metrics[key]['title']} {with_interval(measured, metrics[key])}")
        bound = measured["high" if key == "ssim" else "low"]
        bound = measured["value"] if bound is None else bound
        beyond = bound < limit if key == "ssim" else bound > limit
        is_different = bool(is_different) or beyond
    return said, is_different
