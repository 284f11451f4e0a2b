"""The colours are told apart on light and dark paper, also by eyes that see fewer of them."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from ditprune.reporting import plots as palette

# Machado, Oliveira and Fernandes (2009), severity 1, of linear RGB.
SEEN_BY = {
    "all cones": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216],
                   [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413],
                     [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602],
                   [0.004733, 0.691367, 0.303900]],
}  # fmt: skip
_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])


def linear(colour: str) -> np.ndarray:
    parts = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    return np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)


def contrast(one: str, other: str) -> float:
    """WCAG 2.2."""
    low, high = sorted(float(linear(colour) @ _XYZ[1]) for colour in (one, other))
    return (high + 0.05) / (low + 0.05)


def lab(rgb: np.ndarray) -> np.ndarray:
    """CIELAB, D65."""
    x, y, z = np.cbrt(np.clip(_XYZ @ rgb / _XYZ.sum(axis=1), 0.008856, None))
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_marks_stand_out_and_text_is_read(scheme: str) -> None:
    paper, ink = palette.PAPER[scheme], palette.INK[scheme]
    assert all(contrast(colour, paper) >= 3 for colour in palette.SERIES[scheme])
    assert contrast(ink, paper) >= 7
    assert contrast(ink, palette.HEAT[scheme]) >= 4.5


@pytest.mark.parametrize("eyes", SEEN_BY)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_two_models_look_the_same(scheme: str, eyes: str) -> None:
    seen = [
        lab(np.clip(np.array(SEEN_BY[eyes]) @ linear(colour), 0, 1))
        for colour in palette.SERIES[scheme]
    ]
    assert min(float(np.linalg.norm(a - b)) for a, b in combinations(seen, 2)) > 10


def test_colour_and_shape_together_tell_many_models_apart() -> None:
    pairs = {(n % palette.NUM_COLOURS, palette.mark(n)) for n in range(35)}
    assert len(pairs) == 35
