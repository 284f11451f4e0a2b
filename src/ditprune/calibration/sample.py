"""Which denoiser calls are sampled? One step of each item, evenly spread from noise to image.

A pipeline with guidance may call the denoiser twice in a step; both calls belong to the item.
Items are ordered from noise to image, so the items of one sampling run want neighbouring steps. The
run ends after the last of these steps: half the steps of a full run, on average.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import groupby
from typing import Any

import torch

from ditprune.calibration.draw import as_conditions, conditions, item_seed, of_items, run
from ditprune.calls import NUM_BINS, Call, bin_of
from ditprune.checkpoints import copy_folder
from ditprune.checkpoints.calibration_set import MOST_UNITS
from ditprune.checkpoints.locate import ModelFolder
from ditprune.checkpoints.skeleton import combined_fingerprint, folder_fingerprints
from ditprune.checkpoints.weights import Weights
from ditprune.denoiser.capture import denoisers_of
from ditprune.denoiser.placement import Placement
from ditprune.denoiser.rows import merge_calls
from ditprune.denoiser.steps import StepRecorder, Style
from ditprune.errors import RecipeError
from ditprune.method import numbers
from ditprune.method.choices import check_name
from ditprune.targets.blocks import Globs, globs_of
from ditprune.writing.files import installed_versions

# Parts of the way from noise (0) to image (1). Source: arXiv 2607.00927, Figure 6.
TIMESTEPS = {
    "uniform": (0.0, 1.0),
    "early": (0.0, 1 / 3),
    "middle": (1 / 3, 2 / 3),
    "late": (2 / 3, 1.0),
}

# Arguments of a pipeline that have a word of their own, or that sampling sets.
_RESERVED = {
    "prompt", "class_labels", "generator", "output_type", "return_dict", "num_inference_steps",
    "guidance_scale", "height", "width", "latents", "num_images_per_prompt",
}  # fmt: skip
# Arguments of a pipeline; None is its default.
_OF_THE_PIPELINE = ("num_inference_steps", "guidance_scale", "height", "width")
# The largest number that each option takes.
_MOST = {
    "num_samples": numbers.MOST, "batch_size": numbers.MOST_AT_ONCE,
    "num_inference_steps": numbers.MOST, "height": numbers.MOST_PIXELS,
    "width": numbers.MOST_PIXELS, "num_bins": numbers.MOST_BINS,
}  # fmt: skip


@dataclass(frozen=True)
class Sampling:
    """Which denoiser calls to take.

    Args:
        num_samples: the number of items; each is taken at one timestep.
        timesteps: `uniform`, `early` (the noisy third), `middle` or `late`.
        num_inference_steps, guidance_scale, height, width: arguments of the pipeline; None is its
            default.
        labels, prompts: the conditions to draw in turn; None is every class of the pipeline, or
            the bundled prompts. With fewer items than conditions, those drawn are spread evenly.
        seed: of the noise and of the order of the conditions.
        purpose: different purposes never share noise (`calibration`, `held-out`).
        batch_size: items sampled together; it changes speed and rounding, not which items.
        pipeline_options: further arguments of the pipeline, such as `num_frames`.
        num_bins: parts of the way from noise to image; items of one part may share a call.
    """

    num_samples: int = 128
    timesteps: str = "uniform"
    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    labels: tuple[int, ...] | None = None
    prompts: tuple[str, ...] | None = None
    seed: int = 0
    purpose: str = "calibration"
    batch_size: int = 16
    height: int | None = None
    width: int | None = None
    pipeline_options: Mapping[str, Any] = field(default_factory=dict)
    num_bins: int = NUM_BINS

    def __post_init__(self) -> None:
        for option, most in _MOST.items():
            value = getattr(self, option)
            if value is not None or option not in _OF_THE_PIPELINE:
                object.__setattr__(self, option, numbers.whole(option, value, most))
        object.__setattr__(self, "seed", numbers.integer("seed", self.seed))
        for word in ("labels", "prompts"):
            object.__setattr__(self, word, as_conditions(word, getattr(self, word)))
        if self.guidance_scale is not None:
            numbers.finite("guidance_scale", self.guidance_scale)
        if self.num_units > MOST_UNITS:
            raise RecipeError(
                f"--num-samples {self.num_samples}: {self.num_units:,} sampling runs of "
                f"--batch-size {self.batch_size}; expected at most {MOST_UNITS:,} runs"
            )
        options = self.pipeline_options
        if not isinstance(options, Mapping) or not all(isinstance(word, str) for word in options):
            raise RecipeError(
                f"pipeline_options={options!r:.60}: expected a dict of arguments by name"
            )
        for name in sorted(options.keys() & _RESERVED):
            raise RecipeError(f"--pipeline-option {name}: is set by ditprune's own options")
        check_name("timesteps", TIMESTEPS, self.timesteps)

    @property
    def num_units(self) -> int:
        """The number of sampling runs; each run samples a batch of items."""
        return -(-self.num_samples // self.batch_size)

    def items(self, unit: int) -> range:
        """The items of one sampling run."""
        first = unit * self.batch_size
        return range(first, min(first + self.batch_size, self.num_samples))

    def progress_t(self, item: int) -> float:
        """The position from noise (0) to image (1) at which an item is taken."""
        low, high = TIMESTEPS[self.timesteps]
        return low + (high - low) * (item + 0.5) / self.num_samples

    def run_options(self) -> dict[str, Any]:
        """The arguments of the pipeline."""
        return {word: getattr(self, word) for word in _OF_THE_PIPELINE} | dict(
            self.pipeline_options
        )

    def protocol(self, pipeline: str, scheduler: str) -> dict[str, object]:
        """Everything that repeats the sampling; the arguments are the names of classes."""
        record = asdict(self) | {"pipeline": pipeline, "scheduler": scheduler}
        return {k: list(v) if isinstance(v, tuple) else v for k, v in record.items()}


def calibration_identity(
    model: ModelFolder, sampling: Sampling, placement: Placement, blocks: Globs = ()
) -> dict[str, Any]:
    """Everything that the calls of a calibration depend on, as plain values.

    Fingerprints tell one denoiser from another. Names, sizes and times of all files show that
    another part was exchanged, such as a text encoder or a decoder.

    Args:
        blocks: globs that say where the blocks are; whose inputs are observed depends on them.
    """
    fingerprints = {
        name: combined_fingerprint(folder_fingerprints(folder, globs_of(blocks, name)))
        for name, folder in model.denoisers.items()
    }
    weights = {name: Weights(folder) for name, folder in model.denoisers.items()}
    versions = installed_versions()
    words = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(sampling).items()}
    dtype = str(placement.dtype).removeprefix("torch.")
    globs = {name: list(globs_of(blocks, name)) for name in model.denoisers} if blocks else {}
    return {
        "weights": fingerprints,
        "files": copy_folder.stamp(model, weights),
        "configuration": copy_folder.config_hash(model.root),
        "sampling": words,
        "placement": {"device": placement.device, "dtype": dtype},
        "versions": {name: versions[name] for name in ("ditprune", "torch", "diffusers")},
        **({"blocks": globs} if globs else {}),
    }


def sample_unit(
    pipeline: Any, sampling: Sampling, unit: int, names: Sequence[str] | None = None
) -> tuple[list[Call], Style]:
    """The denoiser calls of one sampling run, and how the pipeline makes them.

    Items of one bin share calls if their arguments allow it. A unit does not depend on the units
    that were sampled before it.
    """
    items = sampling.items(unit)

    def wanted(num_steps: int) -> dict[int, list[int]]:
        steps: dict[int, list[int]] = {}
        for row, item in enumerate(items):
            step = min(int(sampling.progress_t(item) * num_steps), num_steps - 1)
            steps.setdefault(step, []).append(row)
        return steps

    recorder = StepRecorder(pipeline, denoisers_of(pipeline, names), len(items), wanted)
    run_unit(pipeline, sampling, unit, recorder)
    taken = [recorder.taken[row] for row in range(len(items))]
    return _merged(taken, sampling.num_bins), recorder.style()


def run_unit(pipeline: Any, sampling: Sampling, unit: int, recorder: StepRecorder) -> None:
    """Run the pipeline over the items of one unit, until the recorder ends the run."""
    pool = conditions(pipeline, sampling.labels, sampling.prompts)
    item_conditions = of_items(pool, sampling.num_samples)
    seed = item_seed(f"{sampling.purpose} conditions", sampling.seed, 0)
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(sampling.num_samples, generator=generator).tolist()
    items = sampling.items(unit)
    recorder.record(
        lambda: run(
            pipeline,
            [item_conditions[order[item]] for item in items],
            [item_seed(f"{sampling.purpose} noise", sampling.seed, item) for item in items],
            output_type="latent",
            **sampling.run_options(),
        )
    )


def sample_calls(
    pipeline: Any, sampling: Sampling, names: Sequence[str] | None = None
) -> list[Call]:
    """The denoiser calls of all sampling runs."""
    return [
        call
        for unit in range(sampling.num_units)
        for call in sample_unit(pipeline, sampling, unit, names)[0]
    ]


def _merged(taken: Sequence[Sequence[Call]], num_bins: int) -> list[Call]:
    """Merge the calls of neighbouring items in one bin as far as their arguments allow."""
    merged = []

    def bins(item: Sequence[Call]) -> list[tuple[int, str]]:
        return [(bin_of(call.place, num_bins), call.denoiser) for call in item]

    for _, group in groupby(taken, bins):
        for calls in zip(*group, strict=True):
            merged += merge_calls(calls)
    return merged
