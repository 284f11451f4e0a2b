"""Who reads the samples: the bundled classifier where it can, nobody elsewhere."""

from __future__ import annotations

import pytest
import torch

from ditprune import bundled
from ditprune.bundled.classifier import predict
from ditprune.evaluation import judge
from ditprune.evaluation.metrics import frechet


def strokes() -> torch.Tensor:
    """Drawn ones and zeros, [20, 1, 32, 32]: a bar, a ring, each at ten places."""
    y, x = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij")
    drawn = []
    for i in range(10):
        dx, dy = i % 4 - 1.5, i // 4 - 1
        bar = ((x - 16 - dx).abs() < 1.6) & ((y - 16 - dy).abs() < 9)
        radius = ((x - 16 - dx) / 6).square() + ((y - 16 - dy) / 9).square()
        drawn += [bar.float(), ((radius > 0.55) & (radius < 1.15)).float()]
    return torch.stack(drawn)[:, None]


ONES_AND_ZEROS = [1, 0] * 10


def test_it_reads_drawn_ones_and_zeros() -> None:
    read = judge.read(strokes(), ONES_AND_ZEROS)
    assert read["accuracy"] >= 0.9
    wrong = judge.read(strokes(), [1 - label for label in ONES_AND_ZEROS])
    assert wrong["accuracy"] <= 0.1


def test_accuracy_is_the_share_read_as_asked() -> None:
    images = strokes()
    seen = predict(bundled.load_classifier(), images).tolist()
    half = [label if i < 5 else (label + 1) % 10 for i, label in enumerate(seen)]
    assert judge.read(images, seen)["accuracy"] == 1.0
    assert judge.read(images, half)["accuracy"] == pytest.approx(0.25)


def test_fid_is_the_distance_to_the_reference() -> None:
    images = strokes()
    classifier = bundled.load_classifier()
    metric = frechet.against(bundled.load_reference(), classifier.features)
    with torch.no_grad():
        metric.update(images, real=False)
    fid = judge.read(images, ONES_AND_ZEROS)["fid"]
    assert fid == pytest.approx(metric.compute().item(), rel=1e-5)
    noise = torch.rand(images.shape, generator=torch.Generator().manual_seed(0))
    assert judge.read(noise, ONES_AND_ZEROS)["fid"] > fid > 0


def test_one_image_has_no_fid() -> None:
    assert judge.read(strokes()[:1], [1]) == {"fid": None, "accuracy": 1.0}


@pytest.mark.parametrize(
    ("shape", "conditions"),
    [
        ((2, 3, 32, 32), [0, 1]),
        ((2, 1, 16, 16), [0, 1]),
        ((2, 1, 32, 32), [0, 10]),
        ((2, 1, 32, 32), [0, -1]),
        ((2, 1, 32, 32), ["a cat", "a dog"]),
    ],
    ids=str,
)
def test_what_it_was_not_made_for_has_no_number(shape, conditions) -> None:
    images = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    assert not judge.can_read(images, conditions)
    assert judge.read(images, conditions) == {"fid": None, "accuracy": None}
