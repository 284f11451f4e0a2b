"""Which metrics are there, which way is better, and what is each taken against?"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    """How to show a metric, and how to read it.

    Args:
        title: the name to show.
        better: `lower` or `higher`.
        against: `dense` (the dense model's image or prediction), `real` (real images if there are
            some), `condition` (the label or prompt) or `none`.
        digits: number of digits to show after the point.
        unit: shown after the number.
    """

    title: str
    better: str
    against: str
    digits: int = 3
    unit: str = ""


CATALOGUE: dict[str, Metric] = {
    "relative_error": Metric("relative error", "lower", "dense", 5),
    "ssim": Metric("SSIM", "higher", "dense", 4),
    "psnr": Metric("PSNR", "higher", "dense", 2, "dB"),
    "lpips": Metric("LPIPS", "lower", "dense", 4),
    "fid": Metric("FID", "lower", "real"),
    "sfid": Metric("sFID", "lower", "real"),
    "kid": Metric("KID", "lower", "real", 5),
    "inception_score": Metric("Inception Score", "higher", "none"),
    "precision": Metric("precision", "higher", "real"),
    "recall": Metric("recall", "higher", "real"),
    "clip_score": Metric("CLIP score", "higher", "condition"),
    "image_reward": Metric("ImageReward", "higher", "condition"),
    "accuracy": Metric("accuracy", "higher", "condition"),
}
# Metrics that are taken against real images if there are some, and all that look at features.
AGAINST_IMAGES = tuple(key for key, metric in CATALOGUE.items() if metric.against == "real")
OF_FEATURES = (*AGAINST_IMAGES, "inception_score")
