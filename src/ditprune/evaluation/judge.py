"""What the bundled classifier reads in samples of grey digits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ditprune import bundled
from ditprune.bundled.classifier import IMAGE_SIZE, NUM_CLASSES, predict
from ditprune.evaluation.metrics import frechet

FEATURES = "the bundled MNIST classifier's 64 features; not InceptionV3's, not comparable with it"
UNAVAILABLE = "the bundled classifier reads 32×32 grey digits only"
_FEWEST_IMAGES = 2


def can_read(images: Tensor, conditions: Sequence[Any]) -> bool:
    """Whether these are images [N, C, H, W] and labels of the kind the classifier was made for."""
    return images.shape[1:] == (1, IMAGE_SIZE, IMAGE_SIZE) and all(
        isinstance(c, int) and 0 <= c < NUM_CLASSES for c in conditions
    )


def read(images: Tensor, conditions: Sequence[Any]) -> dict[str, float | None]:
    """FID against the MNIST test set, and the share of images read as the class asked for.

    Args:
        images: [N, 1, 32, 32] in [0, 1].
        conditions: the N class ids that were asked for.

    Returns:
        `fid` and `accuracy`; None where they cannot be had.
    """
    if not can_read(images, conditions):
        return {"fid": None, "accuracy": None}
    classifier = bundled.load_classifier()
    metric = frechet.against(bundled.load_reference(), classifier.features)
    with torch.no_grad():
        for batch in images.split(500):
            metric.update(batch, real=False)
    right = predict(classifier, images) == torch.tensor(list(conditions))
    fid = metric.compute().item() if len(images) >= _FEWEST_IMAGES else None
    return {"fid": fid, "accuracy": right.float().mean().item()}
