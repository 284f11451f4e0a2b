"""The bundled classifier reads grey digits, and nothing else."""

from __future__ import annotations

import pytest
import torch

from ditprune import bundled
from ditprune.evaluation.extractors import can_classify


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


def test_it_reads_drawn_ones_and_zeros() -> None:
    classes = bundled.predict(bundled.load_classifier(), strokes())
    assert (classes == torch.tensor([1, 0] * 10)).double().mean() >= 0.9


def test_it_is_made_for_digits() -> None:
    assert can_classify(torch.zeros(2, 1, 32, 32), [0, 9])


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
def test_it_is_not_made_for_other_images_or_conditions(shape, conditions) -> None:
    assert not can_classify(torch.zeros(shape), conditions)
