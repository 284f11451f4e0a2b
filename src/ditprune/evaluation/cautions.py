"""What a reader of the numbers must be told: where the sample is too small for what they show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ditprune.evaluation.catalogue import CATALOGUE
from ditprune.evaluation.metrics.interval import Estimate, differ, overlap

_DISTANCES = ("fid", "sfid", "kid")


@dataclass(frozen=True)
class Found:
    """One model's numbers.

    Args:
        estimates: by metric.
        values: of metrics that are means over items, the number of each item; items are the same
            for all models, so these are compared item by item.
    """

    estimates: Mapping[str, Estimate]
    values: Mapping[str, Sequence[float]] = field(default_factory=dict)

    def has_same(self, key: str, other: Found) -> bool:
        """Whether both have a metric and it is the same number."""
        return self.estimates[key].value == other.estimates[key].value

    def is_apart(self, key: str, other: Found) -> bool:
        """Whether the sample tells two models apart by a metric that both have."""
        if key in self.values and key in other.values:
            return differ(self.values[key], other.values[key])
        return not overlap(self.estimates[key], other.estimates[key])


def cautions(
    name: str, models: Mapping[str, Found], num_images: int, widths: tuple[int, int]
) -> list[str]:
    """The `warnings` of one model in results.json.

    Args:
        models: all models' numbers, by name; the dense one is `dense`.
        widths: how many features FID and sFID are of.
    """
    said = _of_rank(models[name], num_images, widths)
    if name != "dense":
        said += _against_dense(models[name], models["dense"], num_images)
        said += _against_others(name, models, num_images)
    return said


def _of_rank(own: Found, num_images: int, widths: tuple[int, int]) -> list[str]:
    return [
        f"{CATALOGUE[key].title} of {num_images:,} images in {width:,} features: fewer images "
        "than features make it larger than it is, and unsure"
        for key, width in zip(("fid", "sfid"), widths, strict=True)
        if key in own.estimates and num_images <= width
    ]


def _against_dense(own: Found, dense: Found, num_images: int) -> list[str]:
    said, alike = [], []
    for key in _shared(own, dense):
        if CATALOGUE[key].against == "dense":
            continue
        title = CATALOGUE[key].title
        apart = own.is_apart(key, dense)
        if key in _DISTANCES and own.estimates[key].value < dense.estimates[key].value:
            below = f"{title} {_show(key, own)} is below dense {_show(key, dense)}"
            said.append(
                f"{below}, and the intervals do not overlap: nearer to the reference, which is not "
                "the same as nearer to the dense model; look at the same-seed distances"
                if apart
                else f"{below}, and the intervals overlap: {num_images:,} images cannot tell them "
                "apart"
            )
        elif not apart:
            alike.append(title)
    if alike:
        said.append(f"{num_images:,} images cannot tell it from dense by {', '.join(alike)}")
    return said


def _against_others(name: str, models: Mapping[str, Found], num_images: int) -> list[str]:
    """Each pair is said once, with the later model: by what nothing tells them apart."""
    said, own = [], models[name]
    for other, theirs in models.items():
        if other == name:
            break
        alike = [
            CATALOGUE[key].title
            for key in _shared(own, theirs)
            if other != "dense" and not own.is_apart(key, theirs)
        ]
        if alike:
            said.append(f"{num_images:,} images cannot tell it from {other} by {', '.join(alike)}")
    return said


def _shared(own: Found, other: Found) -> list[str]:
    """The metrics that both have, in the catalogue's order, with different numbers."""
    return [
        key for key in CATALOGUE
        if key in own.estimates and key in other.estimates and not own.has_same(key, other)
    ]  # fmt: skip


def _show(key: str, own: Found) -> str:
    return f"{own.estimates[key].value:.{CATALOGUE[key].digits}f}"
