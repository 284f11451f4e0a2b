"""Small scenes with captions that can be checked.

A scene holds one to three objects in groups of identical ones. A group has a count, a size, a
colour and a shape; a relation may hold between two groups. `captions` says a scene in plain words,
`parse` reads such a text back to what it claims, and `testbeds.drawing` draws the scene.

Held out from training are combinations of attributes, never an attribute alone:

- (colour, shape) where (3 · colour + shape) mod 7 = 0, counted in `COLOURS` and `SHAPES`: one
  shape of each colour, 8 of 56 pairs (14 %);
- (shape, relation, shape) where crc32 of "shape relation shape" mod 100 < 15, with the relation
  as in `RELATIONS`.

The split "train" has scenes without any such combination; "held_out" has scenes with one or more.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import count, permutations
from zlib import crc32

from testbeds.drawing import COLOURS, SHAPES, SIZE, mix, render

__all__ = [
    "COLOURS",
    "SHAPES",
    "SIZE",
    "VOCABULARY",
    "Claims",
    "Group",
    "Scene",
    "caption",
    "captions",
    "claims",
    "parse",
    "render",
    "scene",
]

SIZES = ("small", "large")
RELATIONS = ("left of", "above", "inside")
CONVERSES = {"right of": "left of", "below": "above", "around": "inside"}
OUTERS = ("circle", "square", "ring", "diamond")  # shapes with room for a small object
SPLITS = ("train", "held_out")

_PLURALS = {"cross": "crosses"} | {s: s + "s" for s in SHAPES if s != "cross"}
_SINGULARS = {plural: shape for shape, plural in _PLURALS.items()}
_NUMBERS = {2: "two", 3: "three"}
_PICTURE = "a picture of"


@dataclass(frozen=True)
class Group:
    """Identical objects: how many, and which. A claim that tells no size has None."""

    count: int
    size: str | None
    colour: str
    shape: str


@dataclass(frozen=True)
class Scene:
    """One to three groups, and the relation (of `RELATIONS`) of the first to the second, or None.

    Every group has a size. No two groups share both colour and shape.
    """

    groups: tuple[Group, ...]
    relation: str | None = None


@dataclass(frozen=True)
class Claims:
    """What a caption claims: groups in an order that does not depend on the wording."""

    groups: tuple[Group, ...]
    relation: str | None = None


@cache
def held_out_pair(colour: str, shape: str) -> bool:
    """Whether training never shows this colour on this shape."""
    return (3 * COLOURS.index(colour) + SHAPES.index(shape)) % 7 == 0


@cache
def held_out_triple(first: str, relation: str, second: str) -> bool:
    """Whether training never shows a `first` shape in this relation to a `second`."""
    return crc32(f"{first} {relation} {second}".encode()) % 100 < 15


def held_out(scene: Scene | Claims) -> bool:
    """Whether a scene has a combination that training never shows."""
    if any(held_out_pair(group.colour, group.shape) for group in scene.groups):
        return True
    if scene.relation is None:
        return False
    first, second = scene.groups
    return held_out_triple(first.shape, scene.relation, second.shape)


def scene(index: int, split: str) -> Scene:
    """Give scene `index` of a split: always the same one."""
    key = SPLITS.index(split)
    tries = (_any_scene(mix(key, index, attempt)) for attempt in count())
    return next(s for s in tries if _distinct(s) and held_out(s) == bool(key))


def _distinct(scene: Scene) -> bool:
    """Whether no two groups look alike; what is inside has another colour than what is around."""
    looks = {(group.colour, group.shape) for group in scene.groups}
    colours = {group.colour for group in scene.groups}
    return len(looks) == len(scene.groups) and (scene.relation != "inside" or len(colours) == 2)


def _any_scene(seed: int) -> Scene:
    """Draw a scene: 20 % one group, 50 % left of or above, 16 % inside, 14 % only together."""
    kind = mix(seed, 0) % 100
    if kind < 20:
        return Scene((_group(seed, 1, 1 + mix(seed, 1) % 3),))
    if kind < 70:
        counts = ((1, 1), (1, 1), (1, 2), (2, 1))[mix(seed, 1) % 4]
        groups = tuple(_group(seed, 1 + i, number) for i, number in enumerate(counts))
        return Scene(groups, RELATIONS[kind % 2])
    if kind < 86:
        inner, outer = _group(seed, 1, 1), _group(seed, 2, 1)
        shape = OUTERS[mix(seed, 3) % len(OUTERS)]
        return Scene(
            (Group(1, "small", inner.colour, inner.shape), Group(1, "large", outer.colour, shape)),
            "inside",
        )
    together = ((1, 1), (1, 2), (1, 1, 1), (1, 1, 1))[mix(seed, 1) % 4]
    return Scene(tuple(_group(seed, 1 + i, number) for i, number in enumerate(together)))


def _group(seed: int, slot: int, number: int) -> Group:
    """Draw a group of `number` objects."""
    return Group(
        number,
        SIZES[mix(seed, slot, 1) % len(SIZES)],
        COLOURS[mix(seed, slot, 2) % len(COLOURS)],
        SHAPES[mix(seed, slot, 3) % len(SHAPES)],
    )


def captions(scene: Scene) -> list[str]:
    """Say a scene in every way there is; the first is canonical and tells sizes.

    Some tell no size: they are true of either. None is longer than 20 words.
    """
    return [
        f"{opening} {text}".strip()
        for sized in (True, False)
        for text in _phrases(scene, sized)
        for opening in ("", _there(text), _PICTURE)
    ]


def caption(scene: Scene, index: int) -> str:
    """Say a scene in the way that `index` chooses; any integer will do."""
    ways = captions(scene)
    return ways[mix(index) % len(ways)]


def _there(text: str) -> str:
    """Open with the verb that fits the first group."""
    return "there is" if text.startswith(("a ", "an ")) else "there are"


def _phrases(scene: Scene, sized: bool) -> Iterator[str]:
    """Say the groups in each order, with the relation or its converse."""
    names = [_name(group, sized) for group in scene.groups]
    if scene.relation is None:
        yield from (" and ".join(order) for order in permutations(names))
        return
    converse = next(word for word, relation in CONVERSES.items() if relation == scene.relation)
    first, second = names
    yield f"{first} {scene.relation} {second}"
    yield f"{second} {converse} {first}"


def _name(group: Group, sized: bool) -> str:
    """Name a group: "a large red circle", "two small blue squares"."""
    shape = group.shape if group.count == 1 else _PLURALS[group.shape]
    words = [group.size or ""] * sized + [group.colour, shape]
    article = "an" if words[0] == "orange" else "a"
    return " ".join([_NUMBERS.get(group.count, article), *words])


def parse(text: str) -> Claims:
    """Read what a caption claims; a text that is no caption raises ValueError."""
    rest = text
    for opening in ("there is ", "there are ", _PICTURE + " "):
        rest = rest.removeprefix(opening) if rest == text else rest
    for relation in (*RELATIONS, *CONVERSES):
        first, found, second = rest.partition(f" {relation} ")
        if found:
            pair = (_parse_name(first, text), _parse_name(second, text))
            if relation in CONVERSES:
                return Claims(pair[::-1], CONVERSES[relation])
            return Claims(pair, relation)
    groups = (_parse_name(name, text) for name in rest.split(" and "))
    return Claims(tuple(sorted(groups, key=lambda group: (group.colour, group.shape))))


def _parse_name(name: str, text: str) -> Group:
    """Read the name of a group that stands in `text`."""
    number, *sizes, colour, shape = name.split() if name.count(" ") in (2, 3) else [""] * 3
    counts = {"a": 1, "an": 1} | {word: n for n, word in _NUMBERS.items()}
    group = Group(
        counts.get(number, 0),
        sizes[0] if sizes else None,
        colour,
        _SINGULARS.get(shape, shape),
    )
    known = group.colour in COLOURS and group.shape in SHAPES and group.size in (None, *SIZES)
    if not known or _name(group, bool(sizes)) != name:
        raise ValueError(f"{name!r} names no group of objects, in the caption {text!r}")
    return group


def claims(scene: Scene, sized: bool = True) -> Claims:
    """Give what the captions of a scene claim, with or without sizes."""
    text = captions(scene)[0 if sized else -1]
    return parse(text)


def _vocabulary() -> tuple[str, ...]:
    """Give every word of a caption, sorted."""
    texts = [*SHAPES, *_PLURALS.values(), *COLOURS, *SIZES, *RELATIONS, *CONVERSES]
    texts += [*_NUMBERS.values(), _PICTURE, "there is", "there are", "an", "and"]
    return tuple(sorted({word for text in texts for word in text.split()}))


VOCABULARY = _vocabulary()
