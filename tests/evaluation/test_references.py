"""Against which images: a folder of real ones, the bundled moments, or the dense model's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ditprune.denoiser.placement import Placement
from ditprune.errors import RecipeError
from ditprune.evaluation.catalogue import AGAINST_IMAGES
from ditprune.evaluation.extractors import (
    CLASSIFIER_TEXT,
    Extractor,
    choose_extractor,
    read_picture,
    reference_for,
)
from ditprune.evaluation.metrics.distributions import frechet_distance
from ditprune.evaluation.protocol import Measures

DIGITS = torch.zeros(3, 1, 32, 32, dtype=torch.uint8)


def classifier() -> Extractor:
    found = choose_extractor(Measures(), DIGITS, [0, 1, 2], Placement())
    assert isinstance(found, Extractor)
    return found


def save(folder: Path, num: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (num, 1, 32, 32), generator=generator, dtype=torch.uint8)
    (folder / "in").mkdir(parents=True)
    for i, image in enumerate(images):
        Image.fromarray(image[0].numpy()).save(folder / "in" / f"{i:03d}.png")
    (folder / "notes.txt").write_text("no image")
    return images


def test_a_folder_of_real_images_is_what_all_are_taken_against(tmp_path) -> None:
    images, extractor = save(tmp_path / "real", 60), classifier()
    found = reference_for(tmp_path / "real", extractor, DIGITS)
    assert found.text is not None
    assert found.text.startswith("60 images of real")
    assert set(found.against.values()) == {"real"}
    seen = extractor.see(images)
    assert found.features is not None
    torch.testing.assert_close(found.features.pooled, seen.pooled)
    assert found.pooled_moments is not None
    assert frechet_distance(found.pooled_moments, seen.pooled).value < 1e-6


def test_the_bundled_moments_are_for_fid_alone() -> None:
    found = reference_for(None, classifier(), DIGITS)
    assert found.against == {name: "real" if name == "fid" else "dense" for name in AGAINST_IMAGES}
    assert found.text is not None
    assert "MNIST" in found.text


def test_without_real_images_all_is_against_dense() -> None:
    seer = Extractor("some", classifier().see)
    for found in (reference_for(None, seer, DIGITS), reference_for(None, None, DIGITS)):
        assert (found.text, set(found.against.values())) == (None, {"dense"})


def test_pictures_are_cropped_in_the_middle_and_scaled(tmp_path) -> None:
    pixels = np.zeros((40, 100, 3), np.uint8)
    pixels[:, 30:70] = (255, 0, 0)  # a red square between black bars
    Image.fromarray(pixels).save(tmp_path / "a.png")
    colour = read_picture(tmp_path / "a.png", torch.zeros(1, 3, 20, 20))
    assert colour.shape == (3, 20, 20)
    assert colour.dtype == torch.uint8
    assert (colour[0, 2:-2, 2:-2] == 255).all()
    assert (colour[1:] == 0).all()
    grey = read_picture(tmp_path / "a.png", torch.zeros(1, 1, 20, 40))
    assert grey.shape == (1, 20, 40)


@pytest.mark.parametrize("num", [0, 1])
def test_too_few_images_are_refused(num, tmp_path) -> None:
    save(tmp_path / "real", num)
    with pytest.raises(RecipeError, match=f"holds {num} images, expected 2 or more"):
        reference_for(tmp_path / "real", classifier(), DIGITS)


def test_a_file_that_is_no_image_is_refused(tmp_path) -> None:
    save(tmp_path / "real", 2)
    (tmp_path / "real" / "x.jpg").write_bytes(b"no picture")
    with pytest.raises(RecipeError, match=r"x\.jpg cannot be read as an image"):
        reference_for(tmp_path / "real", classifier(), DIGITS)


def test_the_classifier_sees_what_its_features_are() -> None:
    """The pooled features are `features`; the map before pooling is theirs before the mean."""
    from ditprune import bundled

    extractor, own = classifier(), bundled.load_classifier()
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (60, 1, 32, 32), generator=generator, dtype=torch.uint8)
    seen = extractor.see_all(images)
    unit = images.float() / 255
    with torch.no_grad():
        torch.testing.assert_close(seen.pooled, own.features(unit))
        torch.testing.assert_close(seen.logits, own(unit))
    maps = seen.spatial.reshape(60, 7, 8, 8)
    torch.testing.assert_close(maps.mean(dim=(2, 3)), seen.pooled[:, :7])
    assert extractor.text == CLASSIFIER_TEXT
