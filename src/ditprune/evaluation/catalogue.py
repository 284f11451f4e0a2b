"""Which metrics are there, which way is better, and what is each taken against?"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    """How to show a metric, and how to read it.

    Args:
        title: the name to show.
        better: `lower` or `higher`.
        unit: shown after the number.
        digits: number of digits to show after the point.
        against: `real` (real images if there are some), `dense` (the dense model's image or
            prediction), `condition` (the label or prompt) or `none`.
    """

    title: str
    better: str
    unit: str = ""
    digits: int = 3
    against: str = "real"


CATALOGUE: dict[str, Metric] = {
    "relative_error": Metric("relative error", "lower", digits=5, against="dense"),
    "ssim": Metric("SSIM", "higher", digits=4, against="dense"),
    "psnr": Metric("PSNR", "higher", "dB", 2, "dense"),
    "lpips": Metric("LPIPS", "lower", digits=4, against="dense"),
    "fid": Metric("FID", "lower"),
    "sfid": Metric("sFID", "lower"),
    "kid": Metric("KID", "lower", digits=5),
    "inception_score": Metric("Inception Score", "higher", against="none"),
    "precision": Metric("precision", "higher"),
    "recall": Metric("recall", "higher"),
    "clip_score": Metric("CLIP score", "higher", against="condition"),
    "image_reward": Metric("ImageReward", "higher", against="condition"),
    "accuracy": Metric("accuracy", "higher", against="condition"),
}
_OF_ALL_FRAMES = ("ssim", "psnr", "lpips")


def frames_note(key: str, num_frames: int) -> str | None:
    """Which of a video's frames a metric looks at; None for images."""
    if num_frames < 2 or key == "relative_error":
        return None
    if key in _OF_ALL_FRAMES:
        return f"the mean over all {num_frames} frames of a video"
    return f"of the middle frame of each video, out of {num_frames}"


# Metrics that are taken against real images if there are some, and all that look at features.
AGAINST_IMAGES = tuple(key for key, metric in CATALOGUE.items() if metric.against == "real")
OF_FEATURES = (*AGAINST_IMAGES, "inception_score")
