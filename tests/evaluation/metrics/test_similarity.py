"""SSIM and PSNR of pairs, against their definitions written out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import correlate1d

from ditprune.evaluation.metrics.per_image import PSNR_OF_IDENTICAL, psnr, ssim


def pair(num_colours: int, size: int = 32) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    dense = torch.rand(3, num_colours, size, size, generator=generator)
    spread = torch.tensor([0.02, 0.1, 0.4])[:, None, None, None]
    pruned = dense + spread * torch.randn(dense.shape, generator=generator)
    return pruned.clamp(0, 1), dense


def naive_ssim(one: np.ndarray, two: np.ndarray) -> float:
    """Wang et al. 2004: Gaussian window 11×11 of σ 1.5, reflected at the border, mean over all."""
    offset = np.arange(-5, 6)
    window = np.exp(-(offset**2) / (2 * 1.5**2))
    window /= window.sum()

    def blur(image: np.ndarray) -> np.ndarray:
        rows = correlate1d(image, window, axis=-1, mode="mirror")
        return correlate1d(rows, window, axis=-2, mode="mirror")

    mean_1, mean_2 = blur(one), blur(two)
    var_1, var_2 = blur(one**2) - mean_1**2, blur(two**2) - mean_2**2
    covariance = blur(one * two) - mean_1 * mean_2
    c1, c2 = 0.01**2, 0.03**2
    upper = (2 * mean_1 * mean_2 + c1) * (2 * covariance + c2)
    lower = (mean_1**2 + mean_2**2 + c1) * (var_1 + var_2 + c2)
    return float((upper / lower).mean())


@pytest.mark.parametrize("num_colours", [1, 3])
def test_ssim_of_each_pair(num_colours) -> None:
    pruned, dense = pair(num_colours)
    expected = [
        naive_ssim(a, b)
        for a, b in zip(pruned.double().numpy(), dense.double().numpy(), strict=True)
    ]
    actual = ssim(pruned, dense)
    assert actual.shape == (3,)
    torch.testing.assert_close(actual.double(), torch.tensor(expected).double(), rtol=0, atol=1e-4)
    assert expected[0] > expected[1] > expected[2]


@pytest.mark.parametrize("num_colours", [1, 3])
def test_psnr_of_each_pair(num_colours) -> None:
    pruned, dense = pair(num_colours)
    squares = (pruned.double() - dense.double()).square().mean(dim=(1, 2, 3))
    torch.testing.assert_close(
        psnr(pruned, dense).double(), -10 * squares.log10(), rtol=1e-5, atol=1e-4
    )


def test_identical_images() -> None:
    _, dense = pair(1)
    torch.testing.assert_close(ssim(dense, dense), torch.ones(3))
    assert psnr(dense, dense).tolist() == [PSNR_OF_IDENTICAL] * 3 == [100.0] * 3


def test_one_pair_alone_is_the_same_as_among_others() -> None:
    pruned, dense = pair(1)
    for metric in (ssim, psnr):
        torch.testing.assert_close(metric(pruned[1:2], dense[1:2]), metric(pruned, dense)[1:2])
