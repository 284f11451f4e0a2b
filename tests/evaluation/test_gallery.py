"""The gallery: worst first, the others spread, pictures that are what was drawn."""

from __future__ import annotations

import base64
import io

import numpy as np
import torch
from PIL import Image

from ditprune.evaluation.drawing import Images, image_seed
from ditprune.evaluation.gallery import choose_images, data_uri, gallery_entries
from ditprune.evaluation.protocol import Protocol


def opened(uri: str) -> Image.Image:
    kind, _, data = uri.partition(";base64,")
    picture = Image.open(io.BytesIO(base64.b64decode(data)))
    assert kind == f"data:image/{picture.format.lower()}"
    return picture


def test_the_worst_of_any_model_come_first_then_a_spread() -> None:
    ssim = {"a": [1 - i / 100 for i in range(100)], "b": [1.0] * 100}
    ssim["b"][30] = -0.5
    chosen = choose_images(ssim, 100)
    assert chosen[:12] == [30, *range(99, 88, -1)]
    assert len(chosen) == len(set(chosen)) == 24
    others = chosen[12:]
    assert others == sorted(others, reverse=True)
    assert others[0] > 80
    assert others[-1] < 10


def test_few_images_are_all_shown() -> None:
    assert choose_images({"a": [0.3, 0.1, 0.2]}, 3) == [1, 2, 0]
    assert choose_images({}, 2) == [0, 1]
    assert sorted(choose_images({"a": [0.5] * 15}, 15)) == list(range(15))


def test_small_pictures_are_kept_exactly() -> None:
    generator = torch.Generator().manual_seed(0)
    for num_colours in (1, 3):
        image = torch.randint(0, 256, (num_colours, 32, 32), generator=generator, dtype=torch.uint8)
        pixels = np.asarray(opened(data_uri(image)))
        again = pixels[None] if num_colours == 1 else pixels.transpose(2, 0, 1)
        assert (again == image.numpy()).all()


def test_large_pictures_are_scaled_down() -> None:
    picture = opened(data_uri(torch.full((3, 512, 1024), 128, dtype=torch.uint8)))
    assert (picture.format, picture.size) == ("WEBP", (256, 128))


def test_each_entry_tells_its_condition_its_seed_and_its_pictures(tmp_path) -> None:
    protocol = Protocol(3, seed=5, batch_size=2)
    stored = {}
    for shade, name in ((0, "dense"), (100, "a")):
        stored[name] = Images(tmp_path / name, 3, 2)
        for items in stored[name].ranges:
            batch = torch.tensor([shade + i for i in items], dtype=torch.uint8)
            stored[name].write(items, batch[:, None, None, None].expand(-1, 1, 8, 8).clone(), 1.0)
    entries = gallery_entries(stored, {"a": [0.9, 0.2, 0.5]}, ["x", "y", "z"], protocol)
    assert [entry["index"] for entry in entries] == [1, 2, 0]
    first = entries[0]
    assert (first["condition"], first["ssim"]) == ("y", {"a": 0.2})
    assert first["seed"] == image_seed(protocol, 1)
    assert opened(first["images"]["dense"]).getpixel((0, 0)) == 1
    assert opened(first["images"]["a"]).getpixel((0, 0)) == 101
