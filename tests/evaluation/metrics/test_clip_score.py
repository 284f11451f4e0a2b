"""CLIP score: the cosine of embeddings, by a tiny CLIP on the disk."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import pipeline_parts as parts
from ditprune.evaluation.metrics.per_image import load_clip

PROMPTS = ["a cat", "two dogs and a hat", "x"]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """A CLIP of random weights with its processors, as save_pretrained writes them."""
    return parts.save_clip(tmp_path_factory.mktemp("clip") / "tiny")


def images() -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (3, 3, 40, 40), generator=generator, dtype=torch.uint8)


def test_it_is_the_cosine_of_the_embeddings(model) -> None:
    from transformers import AutoImageProcessor, AutoTokenizer, CLIPModel

    clip = CLIPModel.from_pretrained(model).eval()
    tokens = AutoTokenizer.from_pretrained(model)
    pixels = AutoImageProcessor.from_pretrained(model)
    cosines = []
    for image, prompt in zip(images(), PROMPTS, strict=True):  # one by one, so without padding
        with torch.no_grad():
            out = clip(
                **tokens([prompt], return_tensors="pt"), **pixels([image], return_tensors="pt")
            )
        cosines.append(out.logits_per_image.item() / clip.logit_scale.exp().item())
    found = load_clip(str(model))(images(), PROMPTS)
    expected = torch.tensor(cosines).clamp(min=0)
    assert (expected > 0).any()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_grey_images_are_grey_colours(model) -> None:
    score = load_clip(str(model))
    grey = images()[:, :1]
    torch.testing.assert_close(score(grey, PROMPTS), score(grey.repeat(1, 3, 1, 1), PROMPTS))


def test_a_prompt_longer_than_the_model_reads_is_cut(model) -> None:
    score = load_clip(str(model))(images()[:1], ["long " * 100])
    assert score.isfinite().all()


def test_a_model_that_is_not_here_is_not_fetched(tmp_path) -> None:
    with pytest.raises(OSError, match="nowhere"):
        load_clip(str(tmp_path / "nowhere"))
