"""Captions say what scenes hold, and training never shows what is held out."""

from __future__ import annotations

from collections import Counter

import pytest

from testbeds.scenes import (
    COLOURS,
    RELATIONS,
    SHAPES,
    SPLITS,
    VOCABULARY,
    Claims,
    Group,
    Scene,
    caption,
    captions,
    claims,
    held_out,
    held_out_pair,
    held_out_triple,
    parse,
    scene,
)

NUMBER = 400


def _unsized(groups: tuple[Group, ...]) -> tuple[Group, ...]:
    return tuple(Group(g.count, None, g.colour, g.shape) for g in groups)


@pytest.mark.parametrize("split", SPLITS)
def test_every_caption_claims_what_the_scene_holds(split: str) -> None:
    for one in map(scene, range(NUMBER), [split] * NUMBER):
        for text in captions(one):
            said = parse(text)
            sized = said.groups[0].size is not None
            assert said == claims(one, sized)
            held = one.groups if sized else _unsized(one.groups)
            assert Counter(said.groups) == Counter(held)
            assert said.relation == one.relation
            if one.relation:
                assert said.groups == held


def test_a_relation_and_its_converse_claim_the_same() -> None:
    star, rings = Group(1, None, "red", "star"), Group(2, None, "blue", "ring")
    expected = Claims((star, rings), "left of")
    assert parse("a red star left of two blue rings") == expected
    assert parse("there are two blue rings right of a red star") == expected
    cross = Group(1, "small", "orange", "cross")
    circle = Group(1, "large", "black", "circle")
    around = "a picture of a large black circle around a small orange cross"
    assert parse(around) == Claims((cross, circle), "inside")


def test_the_words_are_few_and_known() -> None:
    words = set()
    for one in (scene(i, split) for i in range(NUMBER) for split in SPLITS):
        for text in captions(one):
            assert len(text.split()) <= 20
            words |= set(text.split())
    assert words == set(VOCABULARY)
    assert list(VOCABULARY) == sorted(words)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a circle",
        "a red circles",
        "an red circle",
        "two red circle",
        "a huge red circle",
        "a red circle near a blue square",
        "a red circle and",
        "four red circles",
        "a red circle above a blue square above a green star",
    ],
)
def test_what_is_no_caption_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="names no group"):
        parse(text)


def test_training_never_shows_what_is_held_out() -> None:
    for index in range(4 * NUMBER):
        assert not held_out(scene(index, "train"))
        assert held_out(scene(index, "held_out"))
    assert held_out(Scene((Group(1, "large", "red", "circle"),)))


def test_training_shows_every_colour_shape_and_relation() -> None:
    scenes = [scene(index, "train") for index in range(4 * NUMBER)]
    pairs = {(g.colour, g.shape) for one in scenes for g in one.groups}
    assert pairs == {(c, s) for c in COLOURS for s in SHAPES if not held_out_pair(c, s)}
    assert len(pairs) == 48
    for relation in RELATIONS:
        related = [one.groups for one in scenes if one.relation == relation]
        assert {first.shape for first, _ in related} == set(SHAPES)
        triples = [held_out_triple(a, relation, b) for a in SHAPES for b in SHAPES]
        assert 0.05 < sum(triples) / len(triples) < 0.25


def test_an_index_fixes_the_scene_and_the_wording() -> None:
    assert scene(12, "train") == scene(12, "train")
    assert scene(12, "train") != scene(13, "train")
    one = scene(12, "train")
    assert {caption(one, index) for index in range(200)} == set(captions(one))


def test_at_most_three_objects_and_all_can_be_told_apart() -> None:
    for one in (scene(i, split) for i in range(NUMBER) for split in SPLITS):
        assert 1 <= sum(group.count for group in one.groups) <= 3
        assert len({(g.colour, g.shape) for g in one.groups}) == len(one.groups)
