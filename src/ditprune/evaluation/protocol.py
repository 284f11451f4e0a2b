"""What is drawn and what is measured: as the user asked for it, and with the defaults filled in."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ditprune.calibration.draw import condition_argument
from ditprune.calibration.sample import Sampling
from ditprune.errors import RecipeError, did_you_mean
from ditprune.evaluation.catalogue import AGAINST_IMAGES, CATALOGUE, OF_FEATURES
from ditprune.method import numbers

CLIP_MODEL = "openai/clip-vit-base-patch16"
EXTRACTORS = ("auto", "classifier", "inception")


@dataclass(frozen=True)
class Protocol:
    """How samples are drawn. Every results file holds it.

    Args:
        num_images: samples per model. Image i has condition i, in turn, and a seed of its own.
        seed: for the samples and the held-out calls.
        num_inference_steps, guidance_scale: None is the pipeline's default.
        labels, prompts: what to draw. None is every class the pipeline knows, or the bundled
            prompts. If there are fewer images than conditions, they are spread evenly over them.
        num_held_out: denoiser calls for the relative error, from seeds no calibration uses.
        batch_size: images drawn together; it changes the speed, not the noise of an image.
        height, width: size of the images in pixels; None is the pipeline's default.
        pipeline_options: further arguments of the pipeline.
    """

    num_images: int = 500
    seed: int = 0
    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    labels: tuple[int, ...] | None = None
    prompts: tuple[str, ...] | None = None
    num_held_out: int = 128
    batch_size: int = 50
    height: int | None = None
    width: int | None = None
    pipeline_options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for option in ("num_images", "num_held_out", "batch_size"):
            most = numbers.MOST_AT_ONCE if option == "batch_size" else numbers.MOST
            object.__setattr__(self, option, numbers.whole(option, getattr(self, option), most))
        self.held_out()  # raises for options that sampling refuses

    def held_out(self) -> Sampling:
        """How the held-out calls are sampled."""
        return Sampling(
            self.num_held_out, "uniform", self.num_inference_steps, self.guidance_scale,
            self.labels, self.prompts, self.seed, purpose="held-out", height=self.height,
            width=self.width, pipeline_options=self.pipeline_options,
        )  # fmt: skip


@dataclass(frozen=True)
class Measures:
    """Which metrics to compute, with which networks, against which images.

    Args:
        names: keys of the catalogue. Weights of metrics that are named are downloaded. None is all
            metrics, and those that would have to download weights are not available.
        feature_extractor: `classifier` (bundled), `inception` (downloads torch-fidelity's weights),
            a file with InceptionV3's weights, or `auto`: the classifier if it can read the images,
            else inception.
        reference: a folder of real images. None is the bundled reference for the classifier, else
            the dense model's images.
        clip: a CLIP model, as a hub id or a folder.
        images: folder that keeps the drawn images; None is `.images` in the folder of results.
    """

    names: tuple[str, ...] | None = None
    feature_extractor: str = "auto"
    reference: Path | None = None
    clip: str = CLIP_MODEL
    images: Path | None = None

    def __post_init__(self) -> None:
        if self.names is not None and not self.names:
            raise RecipeError(
                f"--metrics: names none; expected some of {', '.join(CATALOGUE)}, or leave it out"
            )
        for name in self.names or ():
            if name not in CATALOGUE:
                raise RecipeError(f"--metrics {name}: {did_you_mean(name, CATALOGUE)}")
        given = self.feature_extractor
        if given not in EXTRACTORS and not Path(given).is_file():
            raise RecipeError(
                f"--feature-extractor {given}: no such file; expected {', '.join(EXTRACTORS)} or "
                "a file with InceptionV3's weights"
            )
        if self.reference is not None and not self.reference.is_dir():
            raise RecipeError(f"--reference {self.reference}: no such folder; expected images")
        self._check_use()

    def _check_use(self) -> None:
        """Refuse options that no chosen metric uses. Raises RecipeError."""
        uses = (
            ("--reference", self.reference, None, AGAINST_IMAGES),
            ("--feature-extractor", self.feature_extractor, "auto", OF_FEATURES),
            ("--clip", self.clip, CLIP_MODEL, ("clip_score",)),
        )
        for flag, given, default, users in uses:
            if given != default and not set(users) & set(self.chosen):
                raise RecipeError(
                    f"{flag} {given}: no metric that --metrics names uses it; leave it out, or "
                    f"name one that does ({', '.join(users)})"
                )

    @property
    def chosen(self) -> tuple[str, ...]:
        """The metrics, in the catalogue's order."""
        return tuple(name for name in CATALOGUE if self.names is None or name in self.names)

    def fetches(self, name: str) -> bool:
        """Whether weights for a metric may be downloaded: only if it was named."""
        return self.names is not None and name in self.names


def resolved(protocol: Protocol, pipeline: Any, drawn: Sequence[Any], num_steps: int) -> Protocol:
    """The protocol with the pipeline's defaults filled in, for the record.

    Args:
        drawn: the conditions that images draw in turn.
        num_steps: denoising steps that were run.
    """
    field_of = {"class_labels": "labels", "prompt": "prompts"}
    conditions: dict[str, Any] = {field_of[condition_argument(pipeline)]: tuple(drawn)}
    guidance = protocol.guidance_scale
    if guidance is None:
        parameter = inspect.signature(pipeline.__call__).parameters.get("guidance_scale")
        default = None if parameter is None else parameter.default
        guidance = float(default) if isinstance(default, (int, float)) else None
    return replace(protocol, num_inference_steps=num_steps, guidance_scale=guidance, **conditions)
