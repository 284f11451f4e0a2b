"""One picture: a row per model, a column per seed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ditprune.errors import OutputError
from ditprune.evaluation.gallery import save_grid

LEFT, TILE, GAP = 190, 96, 4


def pixels(file: Path) -> np.ndarray:
    with Image.open(file) as sheet:
        assert sheet.format == "PNG"
        return np.asarray(sheet.convert("RGB")).astype(int)


def tile(sheet: np.ndarray, row: int, column: int) -> np.ndarray:
    top, left = GAP + row * (TILE + GAP), LEFT + column * (TILE + GAP)
    return sheet[top : top + TILE, left : left + TILE]


@pytest.mark.parametrize("num_colours", [1, 3])
def test_every_image_is_in_its_place(num_colours, tmp_path) -> None:
    images = {
        name: torch.stack(
            [torch.full((num_colours, 32, 32), 100 * row + 10 * i) for i in range(5)]
        ).to(torch.uint8)
        for row, name in enumerate(["dense", "pruned"])
    }
    save_grid(images, tmp_path / "grid.png")
    sheet = pixels(tmp_path / "grid.png")
    assert sheet.shape == (2 * (TILE + GAP) + GAP, LEFT + 5 * (TILE + GAP) + GAP, 3)
    for row in range(2):
        for column in range(5):
            assert (tile(sheet, row, column) == 100 * row + 10 * column).all()
    assert [p.name for p in tmp_path.iterdir()] == ["grid.png"]


def test_colours_and_directions_are_kept(tmp_path) -> None:
    image = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    image[0, 0, :16, :] = 255  # red above
    image[0, 2, :, :16] = 255  # blue left
    save_grid({"one": image}, tmp_path / "grid.png")
    shown = tile(pixels(tmp_path / "grid.png"), 0, 0)
    corners = [shown[y, x].tolist() for y in (20, 76) for x in (20, 76)]
    assert corners == [[255, 0, 255], [255, 0, 0], [0, 0, 255], [0, 0, 0]]


def test_names_are_written_beside_their_rows(tmp_path) -> None:
    blank = torch.full((3, 1, 32, 32), 255, dtype=torch.uint8)
    save_grid({"dense": blank, "DiT-Pruning": blank}, tmp_path / "grid.png")
    sheet = pixels(tmp_path / "grid.png")
    captions = [sheet[GAP + row * (TILE + GAP) :][:TILE, :LEFT] for row in range(2)]
    widths = [int((caption.min(axis=(0, 2)) < 100).sum()) for caption in captions]
    assert 0 < widths[0] < widths[1]


def test_no_more_columns_than_images(tmp_path) -> None:
    image = torch.zeros(2, 1, 32, 32, dtype=torch.uint8)
    save_grid({"a": image}, tmp_path / "grid.png")
    assert pixels(tmp_path / "grid.png").shape[1] == LEFT + 2 * (TILE + GAP) + GAP


def test_a_place_that_cannot_be_written_is_refused(tmp_path) -> None:
    image = torch.zeros(1, 1, 32, 32, dtype=torch.uint8)
    with pytest.raises(OutputError, match="cannot be written"):
        save_grid({"a": image}, tmp_path / "nowhere" / "grid.png")
