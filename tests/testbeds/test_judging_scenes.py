"""The judge reads what is drawn, and each of its scores notices what it is there to notice."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from ditprune.evaluation.metrics.distributions import frechet_distance, moments
from testbeds.judge import SCORES, features, judge, read
from testbeds.scenes import Group, Scene, captions, render, scene

CIRCLE = Group(1, "large", "red", "circle")
SQUARE = Group(1, "small", "blue", "square")
CAPTION = "a large red circle above a small blue square"


def _pictures(scenes: list[Scene]) -> Tensor:
    return render(scenes, range(len(scenes))).movedim(1, -1)


@pytest.fixture(scope="module")
def held_out() -> list[Scene]:
    return [scene(index, "held_out") for index in range(300)]


def test_what_is_drawn_is_read(held_out: list[Scene]) -> None:
    scores = judge(_pictures(held_out), [captions(one)[0] for one in held_out])
    assert tuple(scores) == SCORES
    for name in SCORES:
        assert np.nanmean(scores[name]) >= 0.99, name
    unrelated = [one.relation is None for one in held_out]
    np.testing.assert_array_equal(np.isnan(scores["relation"]), unrelated)


def test_noise_hides_little(held_out: list[Scene]) -> None:
    clean = _pictures(held_out[:100])
    noisy = (clean + 4 * torch.randn(clean.shape)).round().clamp(0, 255).to(torch.uint8)
    scores = judge(noisy, [captions(one)[0] for one in held_out[:100]])
    assert scores["all"].mean() >= 0.97


def test_other_captions_are_not_true(held_out: list[Scene]) -> None:
    others = [captions(one)[0] for one in held_out[1:51]]
    assert judge(_pictures(held_out[:50]), others)["all"].sum() == 0


WRONG = {
    "right": (Scene((CIRCLE, SQUARE), "above"), (1, 1, 1, 1, 1)),
    "colours swapped": (
        Scene((Group(1, "large", "blue", "circle"), Group(1, "small", "red", "square")), "above"),
        (1, 1, 0, 0, 0),
    ),
    "object missing": (Scene((CIRCLE,)), (0, 0, 0, 0, 0)),
    "relation swapped": (Scene((SQUARE, CIRCLE), "above"), (1, 1, 1, 0, 0)),
    "object extra": (
        Scene((CIRCLE, SQUARE, Group(1, "small", "green", "star"))),
        (1, 0, 1, None, 0),
    ),
    "count wrong": (
        Scene((CIRCLE, Group(2, "small", "blue", "square")), "above"),
        (1, 0, 1, 1, 0),
    ),
    "size wrong": (
        Scene((CIRCLE, Group(1, "large", "blue", "square")), "above"),
        (1, 1, 1, 1, 0),
    ),
    "shape wrong": (
        Scene((CIRCLE, Group(1, "small", "blue", "diamond")), "above"),
        (0, 0, 0, 0, 0),
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_each_score_notices_its_mistake(name: str) -> None:
    drawn, expected = WRONG[name]
    scores = judge(_pictures([drawn]), [CAPTION])
    for score, value in zip(SCORES, expected, strict=True):
        assert value is None or scores[score][0] == value, score


def test_a_caption_without_sizes_asks_for_none() -> None:
    drawn = _pictures([Scene((CIRCLE, SQUARE), "above")])
    assert judge(drawn, ["a blue square below a red circle"])["all"][0] == 1


def test_inside_is_told_from_beside() -> None:
    outer, inner = Group(1, "large", "red", "ring"), Group(1, "small", "blue", "square")
    pictures = _pictures([Scene((inner, outer), "inside"), Scene((inner, outer), "left of")])
    assert judge(pictures, ["a blue square inside a red ring"] * 2)["relation"].tolist() == [1, 0]
    assert judge(pictures, ["a blue square left of a red ring"] * 2)["relation"].tolist() == [0, 1]


def test_an_empty_picture_holds_nothing() -> None:
    grey = torch.full((1, 64, 64, 3), 226, dtype=torch.uint8)
    assert read(grey) == [[]]
    scores = judge(grey, ["a red circle"])
    assert [scores[name][0] for name in SCORES if name != "relation"] == [0, 0, 0, 0]
    assert math.isnan(scores["relation"][0])


def test_features_tell_sharp_pictures_from_coarse_ones(held_out: list[Scene]) -> None:
    first, second = (_pictures(part) for part in (held_out[:150], held_out[150:]))
    coarse = first[:, 2::4, 2::4].repeat_interleave(4, 1).repeat_interleave(4, 2)
    reference = features(first)
    assert reference.shape == (150, 96)
    assert reference.dtype == torch.float32
    sums = moments(reference)
    near, far = (frechet_distance(sums, features(pictures)).value for pictures in (second, coarse))
    assert near < far


@pytest.mark.parametrize("shape", [(1, 3, 64, 64), (1, 32, 32, 3)])
def test_other_pictures_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="must be uint8"):
        read(torch.zeros(shape, dtype=torch.uint8))


def test_as_many_captions_as_pictures() -> None:
    with pytest.raises(ValueError, match="2 captions"):
        judge(torch.zeros(1, 64, 64, 3, dtype=torch.uint8), ["a red circle"] * 2)
