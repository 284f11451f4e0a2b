"""Which models does a study measure, with these options?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from ditprune.calibration.sample import Sampling
from ditprune.errors import RecipeError, did_you_mean
from ditprune.evaluation.protocol import Protocol
from ditprune.method.recipe import Recipe
from ditprune.method.words import build
from ditprune.reproduce.studies import STUDIES, Method, Study
from ditprune.targets.blocks import Globs

ALL = "all"
# Options that only some studies act on.
_OPTIONS = (
    "num_images", "num_held_out", "batch_size", "num_samples", "sparsities", "steps",
    "guidance_scales", "sizes", "layers",
)  # fmt: skip
_ONE_SETTING = ("steps", "guidance_scales")


@dataclass(frozen=True)
class Options:
    """What the user asked for; None is the default of the study.

    Args:
        num_images, num_held_out, batch_size: as in `Protocol`.
        num_samples: calibration samples.
        sparsities, steps, guidance_scales: settings; a study has a row for every combination.
        sizes: numbers of calibration samples, for `calibration-size`.
        layers: globs of targets, for `importance`.
        seed, labels, prompts, height, width, pipeline_options: as in `Protocol`.
        blocks: globs that say where the blocks are, for all denoisers or by denoiser.
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
    blocks: Globs = ()

    def check(self, study: Study) -> None:
        """Refuse an option that a study does not act on. Raises RecipeError."""
        for name in _OPTIONS:
            if getattr(self, name) is not None and name not in study.takes:
                actors = ", ".join(s.name for s in STUDIES.values() if name in s.takes)
                raise RecipeError(
                    f"{_flag(name)}: the study '{study.name}' does not vary it; leave it out, or "
                    f"run one that does ({actors})"
                )
        for name in () if study.methods else _ONE_SETTING:
            if len(getattr(self, name) or ()) > 1:
                raise RecipeError(
                    f"{_flag(name)}: the study '{study.name}' looks at one calibration; "
                    "expected one value"
                )

    def for_study(self, study: Study) -> Options:
        """The part that a study acts on, for `all`; a study that only looks takes one setting."""
        changes: dict[str, Any] = {name: None for name in _OPTIONS if name not in study.takes}
        if not study.methods:
            for name in _ONE_SETTING:
                changes.setdefault(name, (getattr(self, name) or ())[:1] or None)
        return replace(self, **changes)

    def protocol(self, steps: int | None, guidance: float | None) -> Protocol:
        """How images are drawn at one setting."""
        return self._filled(Protocol, num_inference_steps=steps, guidance_scale=guidance)

    def sampling(self, steps: int | None, guidance: float | None, **changes: Any) -> Sampling:
        """How a method is calibrated at one setting; `changes` are fields of its own."""
        changes |= {"num_inference_steps": steps, "guidance_scale": guidance}
        # The option is about images.
        return self._filled(Sampling, batch_size=Sampling.batch_size, **changes)

    def _filled(self, kind: Any, **values: Any) -> Any:
        """`kind` with these values, and with the options that it has too."""
        names = [part.name for part in fields(kind) if getattr(self, part.name, None) is not None]
        return kind(**{name: getattr(self, name) for name in names} | values)


def _flag(name: str) -> str:
    return "--include" if name == "layers" else "--" + name.replace("_", "-")


@dataclass(frozen=True)
class Row:
    """One model to measure; `recipe` is None for the dense one."""

    method: str
    recipe: Recipe | None
    protocol: Protocol
    sampling: Sampling

    def setting(self) -> dict[str, Any]:
        """What differs between the rows of a study, besides the method."""
        recipe = self.recipe
        return {
            "sparsity": 0.0 if recipe is None else recipe.sparsity,
            "pattern": None if recipe is None else recipe.to_json()["pattern"],
            "num_inference_steps": self.protocol.num_inference_steps,
            "guidance_scale": self.protocol.guidance_scale,
            "num_samples": self.sampling.num_samples,
            "timesteps": self.sampling.timesteps,
        }


def studies_of(name: str) -> list[Study]:
    """The study of this name, or every one for `all`. Raises RecipeError for an unknown name."""
    if name == ALL:
        return list(STUDIES.values())
    if name not in STUDIES:
        raise RecipeError(f"STUDY '{name}': {did_you_mean(name, [*STUDIES, ALL])}")
    return [STUDIES[name]]


def settings_of(
    study: Study, options: Options, is_bundled: bool
) -> list[tuple[int | None, float | None]]:
    """The (steps, guidance scale) pairs of a study; None is the pipeline's default."""
    has_scales = is_bundled or study.axis == "guidance_scale"
    steps = options.steps or (study.steps if is_bundled else (None,))
    scales = options.guidance_scales or (study.guidance_scales if has_scales else (None,))
    return [(step, scale) for scale in scales for step in steps]


def rows_of(study: Study, options: Options, is_bundled: bool) -> list[Row]:
    """All rows of a study, those of one protocol together, dense first. Raises RecipeError."""
    if not study.methods:
        return []
    settings = settings_of(study, options, is_bundled)
    return [row for setting in settings for row in _rows_at(study, options, *setting)]


def _rows_at(
    study: Study, options: Options, steps: int | None, guidance: float | None
) -> Iterator[Row]:
    protocol = options.protocol(steps, guidance)
    yield Row("dense", None, protocol, options.sampling(steps, guidance))
    for sparsity in options.sparsities or study.sparsities:
        for method in _methods(study, options):
            share = None if "pattern" in method.words else sparsity
            recipe = build(**method.words, sparsity=share)
            sampling = options.sampling(steps, guidance, **method.sampling)
            yield Row(method.name, recipe, protocol, sampling)


def _methods(study: Study, options: Options) -> tuple[Method, ...]:
    if options.sizes is None:
        return study.methods
    words = study.methods[0].words
    return tuple(Method(f"{n} samples", words, {"num_samples": n}) for n in options.sizes)
