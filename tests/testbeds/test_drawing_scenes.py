"""A picture depends on its scene and its seed alone, and shows what the maps say."""

from __future__ import annotations

import pytest
import torch
from scipy import ndimage

from testbeds.drawing import COLOURS, PALETTE, SHAPES, SIZE, draw, mix, render, uniform
from testbeds.scenes import SPLITS, Group, Scene, scene

SCENES = [scene(index, SPLITS[index % 2]) for index in range(120)]


def test_a_picture_does_not_depend_on_its_batch() -> None:
    together = render(SCENES, range(len(SCENES)))
    assert together.shape == (len(SCENES), 3, SIZE, SIZE)
    assert together.dtype == torch.uint8
    backwards = render(SCENES[::-1], range(len(SCENES))[::-1]).flip(0)
    torch.testing.assert_close(backwards, together, rtol=0, atol=0)
    for index in range(0, len(SCENES), 8):
        alone = render([SCENES[index]], [index])[0]
        torch.testing.assert_close(alone, together[index], rtol=0, atol=0)


def test_seeds_vary_a_picture() -> None:
    pictures = render(SCENES[:1] * 20, range(20))
    assert len(pictures.unique(dim=0)) == 20


def test_no_scenes_give_no_pictures() -> None:
    assert render([], []).shape == (0, 3, SIZE, SIZE)


def test_the_hash_of_tensors_is_the_hash_of_integers() -> None:
    seeds = [0, 1, 77, 2**32 - 1]
    expected = [[(mix(seed, k) >> 8) / 2**24 for k in range(5)] for seed in seeds]
    assert uniform(torch.tensor(seeds), 5).tolist() == expected


def test_uniform_numbers_are_uniform() -> None:
    numbers = uniform(torch.arange(5000), 4)
    torch.testing.assert_close(numbers.mean(0), torch.full([4], 0.5), rtol=0, atol=0.02)
    correlations = torch.corrcoef(numbers.T) - torch.eye(4)
    assert correlations.abs().max() < 0.06


def test_every_object_stands_apart() -> None:
    _, colours, shapes = draw(SCENES, range(len(SCENES)))
    for one, colour_HW, shape_HW in zip(SCENES, colours.numpy(), shapes.numpy(), strict=True):
        for group in one.groups:
            mask = colour_HW == COLOURS.index(group.colour) + 1
            mask &= shape_HW == SHAPES.index(group.shape) + 1
            if one.relation == "inside":
                mask = ndimage.binary_fill_holes(mask)  # a small ring shows what is around it
            labels, number = ndimage.label(mask, [[1] * 3] * 3)
            assert number == group.count
            for rows, columns in ndimage.find_objects(labels):
                extent = max(rows.stop - rows.start, columns.stop - columns.start)
                low, high = (9, 14) if group.size == "small" else (18, 36)
                assert low <= extent <= high


@pytest.mark.parametrize("colour", COLOURS)
def test_the_middle_of_a_square_has_its_colour(colour: str) -> None:
    image, colours, _ = draw([Scene((Group(1, "large", colour, "square"),))], [5])
    shown = image[0, :, colours[0] > 0].float().median(1).values
    assert (shown - torch.tensor(PALETTE[colour])).abs().max() <= 12
