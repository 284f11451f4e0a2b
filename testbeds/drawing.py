"""Draws scenes: flat shapes with soft edges on a light ground, on any device.

What a scene leaves open (where exactly, how large exactly, tints) comes from a seed by a hash of
integers, so a picture depends on nothing but its scene and its seed: not on the batch, and by
elementwise arithmetic that IEEE 754 fixes, not on the device.

Axes: N pictures, K = 3 objects, H and W pixels, M objects of one shape.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from testbeds.scenes import Scene

SIZE = 64
PALETTE = {
    "red": (214, 40, 40),
    "orange": (247, 138, 30),
    "yellow": (240, 214, 50),
    "green": (40, 160, 70),
    "cyan": (60, 196, 220),
    "blue": (40, 70, 210),
    "purple": (150, 50, 180),
    "black": (30, 30, 34),
}
COLOURS = tuple(PALETTE)
GROUND, GROUND_SPREAD = 226, 12  # the ground's grey, and how far a seed moves it
TINT = 12  # how far a seed moves a channel of a colour
RADII = {"small": (5.5, 6.8), "large": (10.5, 12.5)}  # half of an object's larger extent
INNER_RADII, OUTER_RADII = (5.5, 6.2), (16.5, 18.0)  # of a pair with one inside the other
MARGIN = 2.0  # pixels between an object and the border of its box
_CHUNK = 512

# ---------------------------------------------------------------------- random numbers


def mix(*numbers: int) -> int:
    """Hash integers to 32 bits."""
    state = 0
    for number in numbers:
        state = (state * 0x9E3779B1 + number + 0x7F4A7C15) & 0xFFFFFFFF
        for multiplier in (0x85EBCA6B, 0xC2B2AE35):
            state = ((state ^ (state >> 16)) * multiplier) & 0xFFFFFFFF
        state ^= state >> 16
    return state


def uniform(seeds_N: Tensor, number: int) -> Tensor:
    """Give N × `number` floats in [0, 1): multiples of 2⁻²⁴ that hash the seeds as `mix` does."""
    state = torch.zeros_like(seeds_N)[:, None]
    for part in (seeds_N[:, None], torch.arange(number, device=seeds_N.device)):
        state = (state * 0x9E3779B1 + part + 0x7F4A7C15) & 0xFFFFFFFF
        for multiplier in (0x85EBCA6B, 0xC2B2AE35):
            state = ((state ^ (state >> 16)) * multiplier) & 0xFFFFFFFF
        state = state ^ (state >> 16)
    numbers: Tensor = (state >> 8).float() / 2**24
    return numbers


# ---------------------------------------------------------------------- shapes
# Each gives the signed distance (negative inside) of points x, y to a shape whose larger extent
# is [-1, 1]; y points down. Straight edges meet in sharp corners, so outside it may be short.


def _circle(x: Tensor, y: Tensor) -> Tensor:
    return (x * x + y * y).sqrt() - 1


def _square(x: Tensor, y: Tensor) -> Tensor:
    return torch.maximum(x.abs(), y.abs()) - 0.9


def _triangle(x: Tensor, y: Tensor) -> Tensor:
    return torch.maximum((x.abs() * 1.8 - y - 0.9) / 2.0591, y - 0.9)


def _star(x: Tensor, y: Tensor) -> Tensor:
    x, y = x.abs() / 1.05, 0.09 - y / 1.05  # five arms: fold them onto the one that points up
    for side in (1, -1):
        across = (0.809017 * side * x - 0.587785 * y).clamp(min=0) * 2
        x, y = x - across * 0.809017 * side, y + across * 0.587785
    x, y = x.abs(), y - 1
    slope_x, slope_y = 0.42 * 0.587785, 0.42 * 0.809017 - 1
    return (y * slope_x - x * slope_y) / (slope_x**2 + slope_y**2) ** 0.5


def _cross(x: Tensor, y: Tensor) -> Tensor:
    x, y = x.abs(), y.abs()
    return torch.maximum(torch.maximum(x, y) - 1, torch.minimum(x, y) - 0.34)


def _ring(x: Tensor, y: Tensor) -> Tensor:
    return ((x * x + y * y).sqrt() - 0.8).abs() - 0.2


def _diamond(x: Tensor, y: Tensor) -> Tensor:
    return (x.abs() + y.abs() - 1) * 0.70710678


_DISTANCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "star": _star,
    "cross": _cross,
    "ring": _ring,
    "diamond": _diamond,
}
SHAPES = tuple(_DISTANCES)

# ---------------------------------------------------------------------- layout

_HALF = SIZE // 2
_WHOLE = (0, 0, SIZE, SIZE)
_LEFT, _RIGHT = (0, 0, _HALF, SIZE), (_HALF, 0, SIZE, SIZE)
_LEFTS = ((0, 0, _HALF, _HALF), (0, _HALF, _HALF, SIZE))
_RIGHTS = ((_HALF, 0, SIZE, _HALF), (_HALF, _HALF, SIZE, SIZE))


def _boxes(scene: Scene) -> list[tuple[int, int, int, int]]:
    """Give each object the box (left, top, right, bottom) in which a seed places it."""
    if scene.relation == "inside":
        return [_WHOLE, _WHOLE]
    if scene.relation is None:
        number = sum(group.count for group in scene.groups)
        return ([_WHOLE], [_LEFT, _RIGHT], [*_LEFTS, _RIGHTS[0]])[number - 1]
    first, second = (group.count for group in scene.groups)
    boxes = [*([_LEFT] if first == 1 else _LEFTS), *([_RIGHT] if second == 1 else _RIGHTS)]
    if scene.relation == "above":
        return [(top, left, bottom, right) for left, top, right, bottom in boxes]
    return boxes


def _table(scene: Scene) -> list[list[float]]:
    """Give three rows of numbers [shape, colour, box, radii]; the shape of no object is -1."""
    boxes, rows = iter(_boxes(scene)), []
    for i, group in enumerate(scene.groups):
        radii = RADII[group.size or "large"]
        if scene.relation == "inside":
            radii = (INNER_RADII, OUTER_RADII)[i]
        look = [SHAPES.index(group.shape), COLOURS.index(group.colour)]
        rows += [[*look, *next(boxes), *radii] for _ in range(group.count)]
    return rows + [[-1, 0, *_WHOLE, 1, 1]] * (3 - len(rows))


def _centres(
    scenes: Sequence[Scene], boxes_NK4: Tensor, radii_NK: Tensor, chance_Nx: Tensor
) -> Tensor:
    """Place every object in its box: centres [N, K, 2]."""
    device = boxes_NK4.device
    free_N = torch.tensor([s.relation is None for s in scenes], device=device)
    inside_N = torch.tensor([s.relation == "inside" for s in scenes], device=device)
    number_N = torch.tensor([sum(g.count for g in s.groups) for s in scenes], device=device)
    turn_N = (chance_Nx[:, 0] * number_N).long() * free_N
    turned_NK = (torch.arange(3, device=device) + turn_N[:, None]) % number_N[:, None]
    boxes_NK4 = boxes_NK4.gather(1, turned_NK[..., None].expand(-1, -1, 4))
    low, high = boxes_NK4[..., :2], boxes_NK4[..., 2:]
    reach = radii_NK[..., None] + MARGIN
    where = chance_Nx[:, 4:10].unflatten(1, (3, 2))
    centres = low + reach + where * (high - low - 2 * reach)
    nearby = centres[:, 1] + (where[:, 0] - 0.5) * 1.4
    centres[:, 0] = torch.where(inside_N[:, None], nearby, centres[:, 0])
    flip = (chance_Nx[:, None, 1:3] < 0.5) & free_N[:, None, None]
    centres = torch.where(flip, SIZE - centres, centres)
    swap = (chance_Nx[:, 3, None, None] < 0.5) & free_N[:, None, None]
    return torch.where(swap, centres.flip(-1), centres)


# ---------------------------------------------------------------------- pictures


def render(scenes: Sequence[Scene], seeds: Sequence[int], device: str = "cpu") -> Tensor:
    """Draw each scene with its seed: uint8 [N, 3, H, W]."""
    return draw(scenes, seeds, device)[0]


def draw(
    scenes: Sequence[Scene], seeds: Sequence[int], device: str = "cpu"
) -> tuple[Tensor, Tensor, Tensor]:
    """Draw each scene and tell what every pixel shows: image, colours, shapes.

    The image is uint8 [N, 3, H, W]. Colours and shapes are uint8 [N, H, W]: 0 on the ground, and
    one more than the number in `COLOURS` or `SHAPES` where an object covers half of the pixel.
    """
    starts = range(0, len(scenes), _CHUNK)
    parts = [_draw(scenes[i : i + _CHUNK], seeds[i : i + _CHUNK], device) for i in starts]
    if not parts:
        maps = torch.zeros(0, SIZE, SIZE, dtype=torch.uint8, device=device)
        return maps[:, None].expand(-1, 3, -1, -1), maps, maps
    image, colours, shapes = (torch.cat(part) for part in zip(*parts, strict=True))
    return image, colours, shapes


def _draw(
    scenes: Sequence[Scene], seeds: Sequence[int], device: str
) -> tuple[Tensor, Tensor, Tensor]:
    table = torch.tensor([_table(scene) for scene in scenes], device=device)  # [N, K, 8]
    chance = uniform(torch.tensor([s & 0xFFFFFFFF for s in seeds], device=device), 26)
    low_NK, high_NK = table[..., 6], table[..., 7]
    radii_NK = low_NK + chance[:, 10:13] * (high_NK - low_NK)
    centres_NK2 = _centres(scenes, table[..., 2:6], radii_NK, chance)
    tints_NK3, ground_N3 = _tints(table[..., 1].long(), chance[:, 13:])
    image = ground_N3[:, :, None, None].expand(-1, -1, SIZE, SIZE)
    seen_2NHW = torch.zeros(2, len(scenes), SIZE, SIZE, dtype=torch.uint8, device=device)
    looks_2NK = (table[..., [1, 0]] + 1).to(torch.uint8).movedim(-1, 0)
    for k in (2, 1, 0):  # what lies inside comes last
        cover_NHW = _cover(table[:, k, 0], centres_NK2[:, k], radii_NK[:, k])
        image = image + (tints_NK3[:, k, :, None, None] - image) * cover_NHW[:, None]
        seen_2NHW = torch.where(cover_NHW > 0.5, looks_2NK[:, :, k, None, None], seen_2NHW)
    return image.round().to(torch.uint8), *seen_2NHW


def _tints(colours_NK: Tensor, chance_Nx: Tensor) -> tuple[Tensor, Tensor]:
    """Tint the colours, [N, K, 3], and the ground, [N, 3]."""
    palette = torch.tensor(list(PALETTE.values()), device=colours_NK.device).float()
    signed = chance_Nx * 2 - 1
    tints_NK3 = palette[colours_NK] + signed[:, :9].unflatten(1, (3, 3)) * TINT
    ground_N3 = GROUND + signed[:, 9:10] * GROUND_SPREAD + signed[:, 10:13] * 5
    return tints_NK3.clamp(0, 255), ground_N3


def _cover(shapes_N: Tensor, centres_N2: Tensor, radii_N: Tensor) -> Tensor:
    """Give the share of every pixel that an object covers: [N, H, W] in [0, 1]."""
    pixels = torch.arange(SIZE, device=shapes_N.device) + 0.5
    cover = torch.zeros(len(shapes_N), SIZE, SIZE, device=shapes_N.device)
    for number, shape in enumerate(SHAPES):
        chosen_M = (shapes_N == number).nonzero()[:, 0]
        radii_M = radii_N[chosen_M, None, None]
        x = (pixels[None, None, :] - centres_N2[chosen_M, 0, None, None]) / radii_M
        y = (pixels[None, :, None] - centres_N2[chosen_M, 1, None, None]) / radii_M
        cover[chosen_M] = (0.5 - _DISTANCES[shape](x, y) * radii_M).clamp(0, 1)
    return cover
