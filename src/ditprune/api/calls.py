"""Which calls do denoisers get when a pipeline draws, and where are they kept?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from ditprune.calibration.draw import as_conditions, conditions
from ditprune.calibration.sample import Sampling, sample_unit
from ditprune.calls import Call
from ditprune.checkpoints.calibration_set import (
    CalibrationSet,
    load_calibration_set,
    save_calibration_set,
)
from ditprune.denoiser.capture import denoisers_of
from ditprune.errors import ModelError, RecipeError, did_you_mean
from ditprune.writing.paths import path_of

_OWN_WORDS = tuple(part.name for part in fields(Sampling))
_NOT_GIVEN = ("purpose", "pipeline_options")


@dataclass(frozen=True, repr=False)
class Calls:
    """Calls of denoisers, in memory or in a folder; iterating gives `ditprune.Call`s.

        calls = ditprune.sample(pipe, labels=[0, 1, 2], num_samples=6)
        calls.save("calls")
        stats = ditprune.calibrate(pipe, ditprune.load_calls("calls"))

    Those of a folder are read as they are needed, one sampling run at a time. `calls["…"]` are
    those of one denoiser of a pipeline with several.

    Args:
        source: the calls, or the calibration set that holds them.
        protocol: how they were sampled.
        component: takes the calls of this denoiser only; None takes all.
        notes: how the pipeline calls its denoiser.
    """

    source: Sequence[Call] | CalibrationSet
    protocol: Mapping[str, object] = field(default_factory=dict)
    component: str | None = None
    notes: Mapping[str, object] = field(default_factory=dict)

    def __iter__(self) -> Iterator[Call]:
        calls = self.source.calls() if isinstance(self.source, CalibrationSet) else self.source
        return (call for call in calls if self.component in (None, call.denoiser))

    def __len__(self) -> int:
        return sum(self._counts().get(name, 0) for name in self.denoisers)

    def __getitem__(self, component: str) -> Calls:
        denoisers = self.denoisers
        if not isinstance(component, str) or component not in denoisers:
            raise ModelError(f"calls: none of '{component}'; {did_you_mean(component, denoisers)}")
        return denoisers[component]

    def __repr__(self) -> str:
        return f"<Calls: {len(self)} of {', '.join(self.denoisers) or 'no denoiser'}>"

    @property
    def denoisers(self) -> dict[str, Calls]:
        """The calls of each denoiser by its component, also where there is only one."""
        return {
            name: Calls(self.source, self.protocol, name, self.notes)
            for name in self._counts()
            if self.component in (None, name)
        }

    @property
    def num_bins(self) -> int | None:
        """The number of parts of the way that they were sampled in; None if it is not known."""
        num_bins = self.protocol.get("num_bins")
        return num_bins if isinstance(num_bins, int) else None

    def save(self, folder: str | Path) -> None:
        """Write them as a calibration set: a new folder, complete or not at all.

        Raises OutputError.
        """
        save_calibration_set(list(self), self.protocol, path_of(folder), self.notes)

    def _counts(self) -> dict[str, int]:
        """The number of calls of each denoiser."""
        if isinstance(self.source, CalibrationSet):
            return self.source.num_calls()
        counts: dict[str, int] = {}
        for call in self.source:
            counts[call.denoiser] = counts.get(call.denoiser, 0) + 1
        return counts


def sample(
    pipe: Any, *, prompts: Sequence[str] | None = None, labels: Sequence[int] | None = None,
    num_samples: int = 128, seed: int = 0, **options: Any,
) -> Calls:  # fmt: skip
    """Record the calls that a pipeline makes to its denoisers while it draws.

        pipe = diffusers.DiTPipeline.from_pretrained(ditprune.bundled.PIPELINE)
        calls = ditprune.sample(pipe, labels=[3, 7], num_samples=4, guidance_scale=1.5)
        print(len(calls), calls.protocol["num_samples"])

    Each sample is one item at one step. The steps are spread evenly from noise to image, and a
    sampling run ends after the last step that it needs.

    Args:
        pipe: any diffusers pipeline whose denoiser is a transformer. It is not changed.
        prompts, labels: what to draw, in turn; by default the bundled prompts, or every class that
            the pipeline knows.
        num_samples: items to record, 128 as in the paper.
        seed: of the noise and of the order of the conditions.
        options: `timesteps` (`uniform`, `early`, `middle` or `late`), `batch_size`, `num_bins`, and
            arguments of the pipeline, such as `guidance_scale` and `num_inference_steps`.

    Returns:
        The calls, on the CPU, as `calibrate` and `prune_` take them.

    Raises:
        RecipeError: the pipeline does not take an option, or needs more than these.
        ModelError: the pipeline does not call its denoiser as expected.
    """
    if not isinstance(getattr(pipe, "components", None), Mapping):
        raise ModelError(f"sample: {type(pipe).__name__} given, expected a diffusers pipeline")
    if "output_type" in options:
        raise RecipeError("sample: output_type does not apply, as no image is made; leave it out")
    if options.keys() & set(_NOT_GIVEN):
        raise RecipeError("sample: pass arguments of the pipeline by name, as in guidance_scale=4")
    words = {word: options.pop(word) for word in _OWN_WORDS if word in options}
    sampling = Sampling(
        num_samples=num_samples, seed=seed, labels=as_conditions("labels", labels),
        prompts=as_conditions("prompts", prompts),
        pipeline_options=options, **words,
    )  # fmt: skip
    names = tuple(denoisers_of(pipe))
    if not names:
        raise ModelError(f"{type(pipe).__name__}: no component is a denoiser with a transformer")
    conditions(pipe, sampling.labels, sampling.prompts)  # refuses before work
    calls: list[Call] = []
    notes: dict[str, object] = {}
    with _quiet(pipe):
        for unit in range(sampling.num_units):
            recorded, style = sample_unit(pipe, sampling, unit, names)
            calls += recorded
            notes = notes or asdict(style)
    scheduler = type(getattr(pipe, "scheduler", None)).__name__
    return Calls(calls, sampling.protocol(type(pipe).__name__, scheduler), None, notes)


def load_calls(folder: str | Path) -> Calls:
    """The calls that `Calls.save` or `ditprune calibrate --calibration-set` wrote.

        calls = ditprune.load_calls("calls")
        print(calls.denoisers.keys())
        stats = ditprune.calibrate(pipe, calls)

    Raises ModelError for anything else, and for a set that is not complete.
    """
    call_set = load_calibration_set(path_of(folder, ModelError))
    if missing := call_set.missing():
        raise ModelError(
            f"{folder}: {len(missing)} of {call_set.num_units} units are missing; finish it with "
            "the `ditprune calibrate` that began it"
        )
    return Calls(call_set, call_set.protocol)


@contextmanager
def _quiet(pipe: Any) -> Iterator[None]:
    """The pipeline shows no bars of its own inside the block."""
    before = getattr(pipe, "_progress_bar_config", None)
    pipe.set_progress_bar_config(**{**(before or {}), "disable": True})
    try:
        yield
    finally:
        if before is None:
            del pipe._progress_bar_config
        else:
            pipe._progress_bar_config = before
