"""Same-seed distance of images: SSIM and PSNR against the dense model's."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor
from torchmetrics.functional.image import (
    peak_signal_noise_ratio,
    structural_similarity_index_measure,
)

# Identical images have no noise to measure; they count as this many decibels.
PSNR_OF_IDENTICAL = 100.0


def ssim(pruned: Float[Tensor, "n c h w"], dense: Float[Tensor, "n c h w"]) -> Float[Tensor, " n"]:
    """Structural similarity of each pair of images in [0, 1]; 1 is identical."""
    values = structural_similarity_index_measure(pruned, dense, data_range=1.0, reduction="none")
    assert isinstance(values, Tensor)
    return values.reshape(len(pruned))


def psnr(pruned: Float[Tensor, "n c h w"], dense: Float[Tensor, "n c h w"]) -> Float[Tensor, " n"]:
    """Peak signal-to-noise ratio of each pair of images in [0, 1], in dB, at most 100."""
    values = peak_signal_noise_ratio(pruned, dense, data_range=1.0, dim=(1, 2, 3), reduction="none")
    return values.clamp(max=PSNR_OF_IDENTICAL)
