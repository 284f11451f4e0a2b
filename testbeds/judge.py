"""Reads pictures back to objects and judges whether they show what captions claim.

`testbeds.reader` tells what every pixel shows. Connected pixels of one colour are an object; its
pixels vote on its shape, and its extent tells its size.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from testbeds import reader
from testbeds.scenes import COLOURS, SHAPES, Claims, Group, parse

SCORES = ("object", "count", "colour", "relation", "all")
SMALLEST = 20  # pixels; the smallest object that is drawn has 41
LARGE = 16.5  # extent in pixels; small objects reach 14, large ones start at 18
APART = 4.0  # pixels between centres that are left of or above another
_BATCH = 256
_IN_PLANE = np.stack([np.zeros((3, 3)), np.ones((3, 3)), np.zeros((3, 3))])


@dataclass(frozen=True)
class Found:
    """An object in a picture; the box (left, top, right, bottom) is in pixels."""

    colour: str
    shape: str
    box: tuple[int, int, int, int]
    area: int

    @property
    def size(self) -> str:
        left, top, right, bottom = self.box
        return "large" if max(right - left, bottom - top) > LARGE else "small"

    @property
    def centre(self) -> tuple[float, float]:
        left, top, right, bottom = self.box
        return (left + right) / 2, (top + bottom) / 2


def read(images: NDArray[np.uint8] | Tensor, device: str = "cpu") -> list[list[Found]]:
    """Find the objects in pictures, uint8 [N, H, W, 3]."""
    found = []
    for part in torch.as_tensor(images).split(_BATCH):
        floats = reader.to_floats(part.to(device))
        colours, shapes, _ = reader.load(device)(floats)
        votes = shapes[:, 1:].log_softmax(1)  # no object has the shape of the ground
        found += _objects(colours.argmax(1).cpu().numpy(), votes.cpu().numpy())
    return found


def _objects(colours_NHW: NDArray[np.int64], votes_NSHW: NDArray[np.float32]) -> list[list[Found]]:
    """Gather connected pixels of one colour into objects."""
    found: list[list[Found]] = [[] for _ in colours_NHW]
    for number, colour in enumerate(COLOURS, 1):
        parts_NHW, _ = ndimage.label(colours_NHW == number, _IN_PLANE)
        shown = parts_NHW > 0
        owners = parts_NHW[shown] - 1
        areas = np.bincount(owners)
        votes = [np.bincount(owners, votes_NSHW[:, s][shown]) for s in range(len(SHAPES))]
        for i, (plane, rows, columns) in enumerate(ndimage.find_objects(parts_NHW)):
            if areas[i] >= SMALLEST:
                shape = SHAPES[int(np.argmax([vote[i] for vote in votes]))]
                box = (columns.start, rows.start, columns.stop, rows.stop)
                found[plane.start].append(Found(colour, shape, box, int(areas[i])))
    return [_visible(objects) for objects in found]


def _visible(objects: list[Found]) -> list[Found]:
    """Leave out what lies in a small object: what is around a small ring shows through its hole."""
    small = [one for one in objects if one.size == "small"]
    return [
        one for one in objects if not any(_within(one, ring) for ring in small if ring is not one)
    ]


def judge(
    images: NDArray[np.uint8] | Tensor, conditions: Sequence[str], device: str = "cpu"
) -> dict[str, NDArray[np.float64]]:
    """Judge pictures, uint8 [N, H, W, 3], by their captions: 1.0 or 0.0 for each of `SCORES`.

    - object: every shape that the caption names is in the picture;
    - count: the picture holds as many of each shape as the caption says, and no other shape;
    - colour: every shape that the caption names is there in exactly the colours said of it;
    - relation: it holds from every object of the first group to every object of the second, and
      both are there; NaN where the caption claims no relation, so take means with `nanmean`;
    - all: the picture holds exactly the objects claimed, with their sizes where the caption tells
      them, and the relation holds if there is one.
    """
    if len(images) != len(conditions):
        raise ValueError(f"{len(images)} pictures do not fit {len(conditions)} captions")
    rows = [
        _scores(parse(condition), found)
        for condition, found in zip(conditions, read(images, device), strict=True)
    ]
    table = np.array(rows, dtype=np.float64).reshape(len(rows), len(SCORES))
    return dict(zip(SCORES, table.T, strict=True))


def _scores(claims: Claims, found: list[Found]) -> tuple[float, ...]:
    """Score one picture in the order of `SCORES`."""
    named = {group.shape for group in claims.groups}
    shapes = Counter(one.shape for one in found)
    asked: Counter[str] = Counter()
    for group in claims.groups:
        asked[group.shape] += group.count
    related = _related(claims, found)
    exact = all(len(_members(group, found)) == group.count for group in claims.groups)
    return (
        float(named <= shapes.keys()),
        float(shapes == asked),
        float(all(_colours(claims.groups, s) == _colours(found, s) for s in named)),
        related,
        float(exact and len(found) == asked.total() and related != 0.0),
    )


def _colours(objects: Sequence[Group | Found], shape: str) -> set[str]:
    return {one.colour for one in objects if one.shape == shape}


def _members(group: Group, found: list[Found]) -> list[Found]:
    """Give the objects that look as the group is said to look."""
    return [
        one
        for one in found
        if (one.colour, one.shape) == (group.colour, group.shape) and group.size in (None, one.size)
    ]


def _related(claims: Claims, found: list[Found]) -> float:
    """Tell whether the relation holds between all members; NaN if there is none."""
    if claims.relation is None:
        return float("nan")
    colour_and_shape = [Group(g.count, None, g.colour, g.shape) for g in claims.groups]
    firsts, seconds = (_members(group, found) for group in colour_and_shape)
    holds = all(_holds(claims.relation, one, other) for one in firsts for other in seconds)
    return float(bool(firsts and seconds) and holds)


def _holds(relation: str, one: Found, other: Found) -> bool:
    """Tell whether one object is left of, above or inside the other.

    Inside means: its box lies in the other's box and its centre in the middle half of that box.
    """
    if relation != "inside":
        axis = ("left of", "above").index(relation)
        return one.centre[axis] + APART <= other.centre[axis]
    left, top, right, bottom = other.box
    distance = np.abs(np.subtract(one.centre, other.centre))
    return bool(_within(one, other) and (distance * 4 <= (right - left, bottom - top)).all())


def _within(one: Found, other: Found) -> bool:
    """Tell whether the box of one object lies in the box of the other."""
    left, top, right, bottom = one.box
    around = other.box
    return around[0] <= left and around[1] <= top and right <= around[2] and bottom <= around[3]


def features(images: NDArray[np.uint8] | Tensor, device: str = "cpu") -> Tensor:
    """Describe pictures, uint8 [N, H, W, 3], by float32 features [N, D] for a Fréchet distance.

    They are the last layer before the labels of a network that tells which coloured shapes a
    picture holds.
    """
    parts = torch.as_tensor(images).split(_BATCH)
    network = reader.load(device)
    return torch.cat([network.describe(reader.to_floats(part.to(device))) for part in parts]).cpu()
