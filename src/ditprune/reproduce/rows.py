"""The rows of a study: each method at each setting, dense first."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from ditprune.calibration.sample import Sampling
from ditprune.errors import RecipeError
from ditprune.evaluation.protocol import Protocol
from ditprune.method.recipe import Recipe, build
from ditprune.reproduce.studies import STUDIES, Method, Study, of_size

NUM_IMAGES, NUM_HELD_OUT, BATCH_SIZE, NUM_SAMPLES = 500, 128, 50, 128
# Options that only some studies act on, with their flags.
_FLAGS = {
    "num_images": "--num-images", "num_held_out": "--num-held-out", "batch_size": "--batch-size",
    "num_samples": "--num-samples", "sparsities": "--sparsities", "steps": "--steps",
    "guidance_scales": "--guidance-scales", "sizes": "--sizes", "layers": "--include",
}  # fmt: skip


@dataclass(frozen=True)
class Options:
    """What the user asked for; None is the default of the study.

    Args:
        num_images, num_held_out, batch_size: as in `Protocol`.
        num_samples: of the calibration.
        sparsities, steps, guidance_scales: settings; a study has a row for every combination.
        sizes: numbers of calibration samples, for `calibration-size`.
        layers: globs of targets, for `importance`.
        seed, labels, prompts, height, width, pipeline_options: as in `Protocol`.
    """

    num_images: int | None = None
    num_held_out: int | None = None
    batch_size: int | None = None
    num_samples: int | None = None
    sparsities: tuple[float, ...] | None = None
    steps: tuple[int, ...] | None = None
    guidance_scales: tuple[float, ...] | None = None
    sizes: tuple[int, ...] | None = None
    layers: tuple[str, ...] | None = None
    seed: int = 0
    labels: tuple[int, ...] | None = None
    prompts: tuple[str, ...] | None = None
    height: int | None = None
    width: int | None = None
    pipeline_options: Mapping[str, Any] = field(default_factory=dict)

    def check(self, study: Study) -> None:
        """Refuse an option that a study does not act on. Raises RecipeError."""
        for name, flag in _FLAGS.items():
            if getattr(self, name) is not None and name not in study.takes:
                actors = ", ".join(s.name for s in STUDIES.values() if name in s.takes)
                raise RecipeError(
                    f"{flag}: the study '{study.name}' does not vary it; leave it out, or run one "
                    f"that does ({actors})"
                )
        if not study.methods:
            for name in ("steps", "guidance_scales"):
                if len(getattr(self, name) or ()) > 1:
                    raise RecipeError(
                        f"{_FLAGS[name]}: the study '{study.name}' looks at one calibration; "
                        "expected one value"
                    )

    def for_study(self, study: Study) -> Options:
        """Without what a study does not act on, for `all`; a study that looks takes the first."""
        kept = {one.name: getattr(self, one.name) for one in fields(self)}
        for name in _FLAGS:
            if name not in study.takes:
                kept[name] = None
        if not study.methods:
            for name in ("steps", "guidance_scales"):
                kept[name] = kept[name] and kept[name][:1]
        return Options(**kept)

    def protocol(self, steps: int | None, guidance: float | None) -> Protocol:
        """How images are drawn at one setting."""
        return Protocol(
            NUM_IMAGES if self.num_images is None else self.num_images, self.seed, steps, guidance,
            self.labels, self.prompts,
            NUM_HELD_OUT if self.num_held_out is None else self.num_held_out,
            BATCH_SIZE if self.batch_size is None else self.batch_size,
            self.height, self.width, self.pipeline_options,
        )  # fmt: skip

    def sampling(self, steps: int | None, guidance: float | None, **own: Any) -> Sampling:
        """How a method is calibrated at one setting; `own` are fields that are its own."""
        number = NUM_SAMPLES if self.num_samples is None else self.num_samples
        words = {"num_samples": number, **own}
        return Sampling(
            num_inference_steps=steps, guidance_scale=guidance, labels=self.labels,
            prompts=self.prompts, seed=self.seed, height=self.height, width=self.width,
            pipeline_options=self.pipeline_options, **words,
        )  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One model to measure.

    Args:
        recipe: None for the dense one.
    """

    method: str
    recipe: Recipe | None
    protocol: Protocol
    sampling: Sampling

    def setting(self) -> dict[str, Any]:
        """What differs between the rows of a study, besides the method."""
        own = self.recipe
        return {
            "sparsity": 0.0 if own is None else own.sparsity,
            "pattern": None if own is None else own.to_json()["pattern"],
            "num_inference_steps": self.protocol.num_inference_steps,
            "guidance_scale": self.protocol.guidance_scale,
            "num_samples": self.sampling.num_samples,
            "timesteps": self.sampling.timesteps,
        }


def settings_of(
    study: Study, options: Options, is_bundled: bool
) -> list[tuple[int | None, float | None]]:
    """The (steps, guidance scale) of a study; None is the pipeline's own."""
    scales: tuple[float | None, ...]
    steps: tuple[int | None, ...]
    steps = options.steps or (study.steps if is_bundled else (None,))
    own = is_bundled or study.axis == "guidance_scale"
    scales = options.guidance_scales or (study.guidance_scales if own else (None,))
    return [(step, scale) for scale in scales for step in steps]


def rows_of(study: Study, options: Options, is_bundled: bool) -> list[Row]:
    """All rows, those of one protocol beside each other. Raises RecipeError."""
    return [
        row
        for steps, guidance in settings_of(study, options, is_bundled)
        for row in _rows_at(study, options, steps, guidance)
    ]


def _rows_at(
    study: Study, options: Options, steps: int | None, guidance: float | None
) -> Iterator[Row]:
    protocol = options.protocol(steps, guidance)
    yield Row("dense", None, protocol, options.sampling(steps, guidance))
    for sparsity in options.sparsities or study.sparsities:
        for method in _methods(study, options):
            is_pattern = "pattern" in method.words
            recipe = build(**method.words, sparsity=None if is_pattern else sparsity)
            yield Row(
                method.name, recipe, protocol, options.sampling(steps, guidance, **method.sampling)
            )


def _methods(study: Study, options: Options) -> tuple[Method, ...]:
    if study.name != "calibration-size" or options.sizes is None:
        return study.methods
    return tuple(of_size(size) for size in options.sizes)
