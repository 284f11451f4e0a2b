"""What the numbers say of a pruned model, in one line, by rule.

Quality is what a metric says against real images, against what was asked for, or of the images
alone. A model is worse where the two 95 % intervals, its own and the dense model's, lie apart in
the bad direction. That is stricter than a test of the difference, so "indistinguishable" is of
this sample and no proof that there is no difference.

Likeness is what same-seed images have in common. Below `VISIBLE_SSIM`, or above `VISIBLE_LPIPS`,
with the interval and not the value alone, the difference is called visible. Both are conventions.

Images with NaN or Inf come first: where dense has some nothing is judged, and a model that has
some where dense has none is visibly worse, whatever its numbers say.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ditprune.reporting.load import DENSE
from ditprune.reporting.numbers import point, with_interval

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
    """The verdicts on all pruned models by level, best first, as (level, names)."""
    found = [
        (level, [name for name, one in verdicts.items() if one.level == level]) for level in LEVELS
    ]
    return [(level, names) for level, names in found if names]


def num_images_of(protocol: Mapping[str, Any]) -> int:
    """How many images the numbers are from; 0 where the protocol does not say."""
    number = protocol.get("num_images")
    return number if isinstance(number, int) and not isinstance(number, bool) else 0


def _of_spoiled(model: Mapping[str, Any], dense: Mapping[str, Any]) -> Verdict | None:
    looked_at = ((dense, "the dense model's", _UNJUDGED), (model, "its own", _VISIBLY_WORSE))
    for one, whose, level in looked_at:
        # Absent in results written before it was counted.
        if number := one.get("num_spoiled"):
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
        own, other = (_bounds(one["metrics"].get(key)) for one in (model, dense))
        if own is None or other is None:
            continue
        above, below = own[0] > other[1], own[1] < other[0]
        is_worse = above if metric["better"] == "lower" else below
        found = worse if is_worse else better if above or below else level
        found.append(_compared(key, metric, model, dense))
    likeness, is_different = _likeness(model, metrics)
    reasons = [*worse, *(f"{text} (better than dense, no gain to count on)" for text in better)]
    if not worse and level:
        reasons.append(f"intervals overlap for {', '.join(level)}")
    quality = worse or better or level
    return Verdict(_level(bool(worse), bool(quality), is_different), (*reasons, *likeness))


def _level(is_worse: bool, is_compared: bool, is_different: bool | None) -> str:
    if is_worse:
        return _VISIBLY_WORSE if is_different else _WORSE
    if is_compared:
        return _OTHER if is_different else _SAME
    if is_different is None:
        return _UNJUDGED
    return _DIFFERENT if is_different else _CLOSE


def _bounds(one: Mapping[str, Any] | None) -> tuple[float, float] | None:
    """The interval, or None."""
    if one is None or one["low"] is None or one["high"] is None:
        return None
    return float(one["low"]), float(one["high"])


def _likeness(
    model: Mapping[str, Any], metrics: Mapping[str, Any]
) -> tuple[Sequence[str], bool | None]:
    """SSIM and LPIPS in words, and whether they call the difference visible; None unknown."""
    said, is_different = [], None
    for key, limit in (("ssim", VISIBLE_SSIM), ("lpips", VISIBLE_LPIPS)):
        one = model["metrics"].get(key)
        if key not in metrics or one is None:
            continue
        said.append(f"same-seed {metrics[key]['title']} {with_interval(one, metrics[key])}")
        bound = one["high" if key == "ssim" else "low"]
        bound = one["value"] if bound is None else bound
        beyond = bound < limit if key == "ssim" else bound > limit
        is_different = bool(is_different) or beyond
    return said, is_different


def _compared(
    key: str, metric: Mapping[str, Any], model: Mapping[str, Any], dense: Mapping[str, Any]
) -> str:
    own, other = model["metrics"][key], dense["metrics"][key]
    return f"{metric['title']} {point(own, metric)} against {point(other, metric)}"
