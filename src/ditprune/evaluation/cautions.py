"""What a reader of the numbers must be told: where the sample is too small for what they show."""

from __future__ import annotations

from collections.abc import Mapping

from ditprune.evaluation.catalogue import CATALOGUE
from ditprune.metrics.estimate import Estimate, overlap

Estimates = Mapping[str, Estimate]

_DISTANCES = ("fid", "sfid", "kid")


def cautions(
    name: str,
    models: Mapping[str, Estimates],
    num_images: int,
    widths: tuple[int, int],
) -> list[str]:
    """The `warnings` of one model in results.json.

    Args:
        models: the estimates of all models, by name; the dense one is `dense`.
        widths: how many features FID and sFID are of.
    """
    said = _of_rank(models[name], num_images, widths)
    if name != "dense":
        said += _against_dense(models[name], models["dense"], num_images)
        said += _against_others(name, models, num_images)
    return said


def _of_rank(own: Estimates, num_images: int, widths: tuple[int, int]) -> list[str]:
    return [
        f"{CATALOGUE[key].title} of {num_images:,} images in {width:,} features: fewer images "
        "than features make it larger than it is, and unsure"
        for key, width in zip(("fid", "sfid"), widths, strict=True)
        if key in own and num_images <= width
    ]


def _against_dense(own: Estimates, dense: Estimates, num_images: int) -> list[str]:
    said, alike = [], []
    for key in own:
        if key not in dense or CATALOGUE[key].against == "dense":
            continue
        title = CATALOGUE[key].title
        apart = not overlap(own[key], dense[key])
        if key in _DISTANCES and own[key].value < dense[key].value:
            below = f"{title} {_show(key, own)} is below dense {_show(key, dense)}"
            said.append(
                f"{below}, and the intervals do not overlap: nearer to the reference, which is not "
                "the same as nearer to the dense model; look at the same-seed distances"
                if apart
                else f"{below}, and the intervals overlap: {num_images:,} images cannot tell them "
                "apart"
            )
        elif not apart and own[key].value != dense[key].value:
            alike.append(title)
    if alike:
        said.append(f"{num_images:,} images cannot tell it from dense by {', '.join(alike)}")
    return said


def _against_others(name: str, models: Mapping[str, Estimates], num_images: int) -> list[str]:
    """Each pair is said once, with the later model; what nothing separates is said, and by what."""
    said = []
    for other, theirs in models.items():
        if other == name:
            break
        if other == "dense":
            continue
        own = models[name]
        alike = [
            CATALOGUE[key].title for key in own
            if key in theirs and own[key].value != theirs[key].value
            and overlap(own[key], theirs[key])
        ]  # fmt: skip
        if alike:
            said.append(f"{num_images:,} images cannot tell it from {other} by {', '.join(alike)}")
    return said


def _show(key: str, own: Estimates) -> str:
    return f"{own[key].value:.{CATALOGUE[key].digits}f}"
