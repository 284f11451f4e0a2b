"""What is drawn: every class once, however many names it has, and few items from everywhere."""

from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest

from ditprune.bundled import PIPELINE
from ditprune.calibration import draw
from ditprune.errors import ModelError


class Named:
    """Like diffusers' DiTPipeline of ImageNet: an entry for each of a class's names."""

    def __init__(self) -> None:
        self.transformer = SimpleNamespace(config=SimpleNamespace(num_embeds_ada_norm=3))
        self.labels = {"tench": 0, "Tinca tinca": 0, "goldfish": 1, "Carassius": 1, "shark": 2}

    def __call__(self, class_labels: Any, **_: Any) -> None: ...


def test_a_class_of_several_names_is_drawn_once() -> None:
    assert draw.conditions(Named(), None, None) == [0, 1, 2]
    assert draw.conditions(Named(), (2, 0, 2), None) == [2, 0, 2]  # as they were given


@pytest.mark.parametrize(("num_items", "size"), [(1, 10), (5, 10), (7, 10), (128, 999), (500, 999)])
def test_fewer_items_than_conditions_are_spread_over_all(num_items, size) -> None:
    drawn = draw.of_items(range(size), num_items)
    assert len(set(drawn)) == len(drawn) == num_items
    gaps = [after - before for before, after in pairwise([*drawn, size + drawn[0]])]
    assert max(gaps) - min(gaps) <= 1
    assert drawn == draw.in_turn(range(size), num_items)


@pytest.mark.parametrize("num_items", [3, 4, 7])
def test_as_many_items_as_conditions_or_more_draw_them_in_turn(num_items) -> None:
    pool = ["b", "a", "b"]
    assert draw.of_items(pool, num_items) == [pool[i % 3] for i in range(num_items)]
    assert draw.in_turn(pool, num_items) == pool


def test_the_bundled_model_draws_its_digits_in_turn() -> None:
    from ditprune.checkpoints.locate import locate
    from ditprune.denoiser.pipeline import load_pipeline

    pool = draw.conditions(load_pipeline(locate(str(PIPELINE))), None, None)
    assert draw.of_items(pool, 25) == [i % 10 for i in range(25)]


def test_a_pipeline_that_starts_from_an_image_names_the_way() -> None:
    """The image has a default of None, so its absence shows only when it is called."""

    class Img2ImgPipeline:
        def __call__(
            self,
            prompt: Any = None,
            image: Any = None,
            generator: Any = None,
            strength: float = 0.6,
        ) -> None:
            raise ValueError(f"`image` has to be a tensor, but is {type(image)}")

    with pytest.raises(ModelError, match=r"Img2ImgPipeline failed .*image.*ditprune\.recorded"):
        draw.run(Img2ImgPipeline(), ["a cat"], [1], strength=0.5)
