"""What is drawn and what is measured, as the user asked for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ditprune.calibration.sample import Sampling
from ditprune.errors import RecipeError, did_you_mean
from ditprune.evaluation.catalogue import AGAINST_IMAGES, CATALOGUE, OF_FEATURES
from ditprune.evaluation.metrics.clip_score import MODEL as CLIP

EXTRACTORS = ("auto", "classifier", "inception")


@dataclass(frozen=True)
class Protocol:
    """How samples are drawn; stands beside every number.

    Args:
        num_images: samples per model; conditions are drawn in turn, each from its own seed.
        seed: of the samples and of the held-out calls.
        num_inference_steps, guidance_scale: None is the pipeline's default.
        labels, prompts: what to draw; None is every class the pipeline knows, or our own prompts.
            Where there are more than images, those drawn are spread evenly over them.
        num_held_out: denoiser calls for the relative error, from seeds no calibration uses.
        batch_size: images drawn together; changes speed, not which noise an item gets.
        height, width: of the images; None is the pipeline's default.
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
            if getattr(self, option) < 1:
                flag = "--" + option.replace("_", "-")
                raise RecipeError(f"{flag} {getattr(self, option)}: expected at least 1")
        self.held_out()  # refuses what sampling would

    def held_out(self) -> Sampling:
        """Where the held-out calls come from."""
        return Sampling(
            self.num_held_out, "uniform", self.num_inference_steps, self.guidance_scale,
            self.labels, self.prompts, self.seed, purpose="held-out", height=self.height,
            width=self.width, pipeline_options=self.pipeline_options,
        )  # fmt: skip


@dataclass(frozen=True)
class Measures:
    """Which metrics, by whose eyes, against what.

    Args:
        names: keys of the catalogue; None is all of them, those that would have to fetch weights
            left as not available. What is named is fetched.
        feature_extractor: `classifier` (bundled), `inception` (weights fetched by torch-fidelity's
            address), a file with InceptionV3's weights, or `auto`: the classifier where it can
            read the images, else inception.
        reference: a folder of real images; None is the bundled reference where the classifier
            looks, else the dense model's images.
        clip: a hub id or a folder of a CLIP model.
        images: where drawn images are kept; None is `.images` in the folder of results.
    """

    names: tuple[str, ...] | None = None
    feature_extractor: str = "auto"
    reference: Path | None = None
    clip: str = CLIP
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
        """Refuse what no chosen metric would look at. Raises RecipeError."""
        uses = (
            ("--reference", self.reference, None, AGAINST_IMAGES),
            ("--feature-extractor", self.feature_extractor, "auto", OF_FEATURES),
            ("--clip", self.clip, CLIP, ("clip_score",)),
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
        """Whether weights that a metric needs may be fetched: where it was named."""
        return self.names is not None and name in self.names
