"""The numbers of one model, from its images as they stream by."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ditprune import bundled
from ditprune.bundled.classifier import predict
from ditprune.evaluation.catalogue import AGAINST_IMAGES
from ditprune.evaluation.drawing import as_unit
from ditprune.evaluation.gallery import picture
from ditprune.evaluation.metrics import (
    frechet,
    inception_score,
    kernel_distance,
    neighbours,
    per_image,
    similarity,
)
from ditprune.evaluation.metrics.features import Seen
from ditprune.evaluation.metrics.interval import Estimate
from ditprune.evaluation.metrics.per_image import PerImage
from ditprune.evaluation.store import Images
from ditprune.evaluation.tools import Tools

_FEWEST_IMAGES = 2
_SHARES = ("accuracy",)  # each image counts or does not


@dataclass(frozen=True)
class Measured:
    """Args:
    estimates: by metric; a metric that does not apply to this model is not there.
    ssim: of each image against the dense one; empty for the dense model.
    values: of metrics that are a mean over images, the number of each image.
    seen: the features of its images, where an extractor looked.
    """

    estimates: dict[str, Estimate]
    ssim: tuple[float, ...]
    values: dict[str, tuple[float, ...]]
    seen: Seen


def measure(
    images: Images, dense: Images | None, dense_seen: Seen | None, asked: Sequence[Any],
    tools: Tools, seed: int,
) -> Measured:  # fmt: skip
    """Every metric that can be had, one batch of images in memory at a time.

    Args:
        dense: the images to compare with, batch by batch; None for the dense model itself.
        dense_seen: their features, the reference where no image is real.
    """
    states: dict[str, PerImage] = {}
    seen = Seen()
    for items, batch in images.batches():
        ask = [asked[i] for i in items]
        pairs = () if dense is None else _pairs(batch, dense.read(items), tools)
        for name, values in (*pairs, *_alone(batch, ask, tools)):
            states[name] = per_image.update(states.get(name, PerImage()), values)
        if tools.extractor is not None:
            seen = tools.extractor.see_all(batch, seen)
    ssim = states["ssim"].values if "ssim" in states else ()
    if "ssim" not in tools.chosen:
        states.pop("ssim", None)
    estimates = {
        name: per_image.compute_share(state)
        if name == "accuracy"
        else per_image.compute(state, seed)
        for name, state in states.items()
    }
    if tools.extractor is not None:
        estimates |= _of_features(seen, dense_seen, tools, seed)
    return Measured(estimates, ssim, {n: state.values for n, state in states.items()}, seen)


def _pairs(batch: Tensor, dense: Tensor, tools: Tools) -> Iterable[tuple[str, Tensor]]:
    """What compares each image with the dense one of its seed; SSIM also orders the gallery."""
    own, reference = as_unit(batch), as_unit(dense)
    yield "ssim", similarity.ssim(own, reference)
    if tools.has("psnr"):
        yield "psnr", similarity.psnr(own, reference)
    if tools.lpips is not None:
        yield "lpips", tools.lpips(own, reference)


def _alone(batch: Tensor, asked: Sequence[Any], tools: Tools) -> Iterable[tuple[str, Tensor]]:
    """What compares each image with what was asked for."""
    if tools.has("accuracy"):
        read = predict(bundled.load_classifier(), as_unit(batch))
        yield "accuracy", (read == torch.tensor(list(asked))).double()
    if tools.clip is not None:
        yield "clip_score", tools.clip(batch, asked)
    if tools.reward is not None:
        yield "image_reward", tools.reward([picture(one) for one in batch], asked)


def _of_features(seen: Seen, dense: Seen | None, tools: Tools, seed: int) -> dict[str, Estimate]:
    """What is of features: against real images, or the dense model's, or none."""
    found: dict[str, Estimate] = {}
    pooled = seen.all_pooled()
    if len(pooled) < _FEWEST_IMAGES:
        return found
    if tools.has("inception_score"):
        found["inception_score"] = inception_score.compute(seen.all_logits(), seed)
    for name in AGAINST_IMAGES:
        if tools.has(name):
            is_real = tools.reference.against[name] == "real"
            if is_real or dense is not None:
                found[name] = _against(name, seen, dense if not is_real else None, tools, seed)
    return found


def _against(name: str, seen: Seen, dense: Seen | None, tools: Tools, seed: int) -> Estimate:
    reference = dense or tools.reference.seen
    if name == "fid":
        real = tools.reference.pooled_moments if dense is None else None
        if real is None:
            assert reference is not None
            real = frechet.moments_of(reference.all_pooled())
        return frechet.compute(real, seen.all_pooled(), seed)
    assert reference is not None
    if name == "sfid":
        return frechet.compute(
            frechet.moments_of(reference.all_spatial()), seen.all_spatial(), seed
        )
    real_pooled, own = reference.all_pooled(), seen.all_pooled()
    if name == "kid":
        return kernel_distance.compute(real_pooled, own, seed)
    inside = (neighbours.precision if name == "precision" else neighbours.recall)(real_pooled, own)
    return per_image.compute_share(per_image.update(PerImage(), inside))
