"""Which numbers does one model have? Computed from its images batch by batch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ditprune import bundled
from ditprune.evaluation.catalogue import AGAINST_IMAGES
from ditprune.evaluation.drawing import Images, as_unit
from ditprune.evaluation.extractors import Features, joined_features
from ditprune.evaluation.gallery import to_picture
from ditprune.evaluation.metrics import distributions, per_image
from ditprune.evaluation.metrics.error_rows import ErrorRow, error_interval, latent_errors
from ditprune.evaluation.metrics.interval import Interval, mean_interval, share_interval
from ditprune.evaluation.tools import Tools
from ditprune.evaluation.user_judge import without_nan

_FEWEST_IMAGES = 2


@dataclass(frozen=True)
class Measured:
    """The numbers of one model.

    Args:
        images: where they come from.
        intervals: by metric; a metric that does not apply to this model is not there.
        values: for metrics that are means over items, the number of each item. SSIM to the dense
            images is always among them, except for the dense model.
        features: what the feature extractor saw in the images; None without an extractor.
    """

    images: Images
    intervals: dict[str, Interval]
    values: dict[str, tuple[float, ...]]
    features: Features | None


def measure_model(
    images: Images, dense: Measured | None, rows: Sequence[ErrorRow], asked: Sequence[Any],
    tools: Tools, seed: int,
) -> Measured:  # fmt: skip
    """Every metric that can be computed, with one batch of images in memory at a time.

    Args:
        dense: what to compare with; None for the dense model itself.
        rows: of its held-out calls; empty for the dense model.
        asked: the condition of each image.
    """
    values: dict[str, tuple[float, ...]] = {}
    seen = []
    for items in images.ranges:
        batch = images.read(items)
        pairs = () if dense is None else _pairs(images, dense.images, items, tools)
        for name, numbers in (*pairs, *_alone(batch, [asked[i] for i in items], tools)):
            values[name] = values.get(name, ()) + tuple(numbers.double().tolist())
        if tools.extractor is not None:
            seen.append(tools.extractor.see_all(batch))
    intervals = {
        name: share_interval(numbers) if name == "accuracy" else mean_interval(numbers, seed)
        for name, numbers in values.items()
        if name in tools.chosen
    } | _judged(values, tools, seed)
    features = joined_features(seen) if seen else None
    if features is not None and images.num_images >= _FEWEST_IMAGES:
        intervals |= _of_features(features, dense, tools, seed)
    if rows and tools.has("relative_error"):
        intervals["relative_error"] = error_interval(rows, seed)
        values["relative_error"] = latent_errors(rows)
    return Measured(images, intervals, values, features)


def _judged(values: Mapping[str, Sequence[float]], tools: Tools, seed: int) -> dict[str, Interval]:
    """Of the numbers of a judge; zeros and ones are a share, others a mean."""
    if tools.judge is None:
        return {}
    numbers = {name: without_nan(values[name]) for name in tools.judge.metrics}
    return {
        name: share_interval(items) if set(items) <= {0.0, 1.0} else mean_interval(items, seed)
        for name, items in numbers.items()
        if items
    }


def _pairs(
    images: Images, dense: Images, items: range, tools: Tools
) -> Iterable[tuple[str, Tensor]]:
    """Metrics of each image and the dense one of its seed, and their means over frames of videos.

    One number for each item, so that intervals count videos, whose frames are alike.
    """
    frames = zip(
        images.read_frames(items).unbind(1), dense.read_frames(items).unbind(1), strict=True
    )
    by_frame = [dict(_of_pair(*pair, tools)) for pair in frames]
    for name in by_frame[0]:
        yield name, torch.stack([numbers[name].double() for numbers in by_frame]).mean(0)


def _of_pair(batch: Tensor, dense: Tensor, tools: Tools) -> Iterable[tuple[str, Tensor]]:
    """Metrics of each image and another; SSIM also orders the gallery."""
    pair = as_unit(batch), as_unit(dense)
    yield "ssim", per_image.ssim(*pair)
    if tools.has("psnr"):
        yield "psnr", per_image.psnr(*pair)
    if "lpips" in tools.networks:
        yield "lpips", tools.networks["lpips"](*pair)


def _alone(batch: Tensor, asked: Sequence[Any], tools: Tools) -> Iterable[tuple[str, Tensor]]:
    """Metrics of each image and its condition."""
    if tools.has("accuracy"):
        classes = bundled.predict(bundled.load_classifier(), as_unit(batch))
        yield "accuracy", classes == torch.tensor(list(asked))
    if "clip_score" in tools.networks:
        yield "clip_score", tools.networks["clip_score"](batch, asked)
    if "image_reward" in tools.networks:
        pictures = [to_picture(image) for image in batch]
        yield "image_reward", tools.networks["image_reward"](pictures, asked)
    if tools.judge is not None:
        yield from tools.judge(batch, asked).items()


def _of_features(
    features: Features, dense: Measured | None, tools: Tools, seed: int
) -> dict[str, Interval]:
    """Metrics of features: against real images, against the dense model's, or against nothing."""
    intervals = {}
    if tools.has("inception_score"):
        intervals["inception_score"] = distributions.inception_score(features.logits, seed)
    for name in AGAINST_IMAGES:
        is_real = tools.reference.against[name] == "real"
        if tools.has(name) and (is_real or dense is not None):
            others = tools.reference.features if is_real or dense is None else dense.features
            intervals[name] = _against(name, features, others, tools, seed)
    return intervals


def _against(
    name: str, features: Features, others: Features | None, tools: Tools, seed: int
) -> Interval:
    """A metric of features against those of other images; None if only their moments are known."""
    if others is None or (name == "fid" and others is tools.reference.features):
        assert tools.reference.pooled_moments is not None
        moments = tools.reference.pooled_moments
        return distributions.frechet_distance(moments, features.pooled, seed)
    if name == "sfid":
        moments = distributions.moments(others.spatial)
        return distributions.frechet_distance(moments, features.spatial, seed)
    real, samples = others.pooled, features.pooled
    if name == "fid":
        return distributions.frechet_distance(distributions.moments(real), samples, seed)
    if name == "kid":
        return distributions.kernel_distance(real, samples, seed)
    is_near = distributions.precision if name == "precision" else distributions.recall
    return share_interval(is_near(real, samples).double().tolist())
