"""Denoiser inputs from the model's own sampling runs, one timestep per sample, evenly spread.

Every sample is one item of one sampling run, taken at one step of the denoising trajectory; a
guided pipeline calls the denoiser for the condition and for none, and both rows belong to it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from ditprune.calibration.pipeline import conditions, draw
from ditprune.calibration.seeds import item_seed
from ditprune.calls import Call
from ditprune.errors import ModelError, RecipeError, did_you_mean

# Shares of the trajectory, from noise (0) to image (1). Source: arXiv 2607.00927, Figure 6.
TIMESTEPS = {"uniform": (0.0, 1.0), "early": (0.0, 1 / 3), "late": (2 / 3, 1.0)}


@dataclass(frozen=True)
class Sampling:
    """Which denoiser calls to take.

    Args:
        num_samples: how many items, each at one timestep.
        timesteps: `uniform`, `early` (the noisy third) or `late`.
        num_inference_steps, guidance_scale: of the sampling runs; None is the pipeline's default.
        labels, prompts: what to draw, in turn; None is every label the pipeline knows.
        seed: of the noise, the order of conditions and the timesteps.
        purpose: draws of different purposes are independent (`calibration`, `held-out`).
        batch_size: items drawn together; changes speed, not results.
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

    def __post_init__(self) -> None:
        if self.num_samples < 1:
            raise RecipeError(f"--num-samples {self.num_samples}: expected at least 1")
        if self.num_inference_steps is not None and self.num_inference_steps < 1:
            raise RecipeError(
                f"--num-inference-steps {self.num_inference_steps}: expected at least 1"
            )
        if self.timesteps not in TIMESTEPS:
            raise RecipeError(
                f"--timesteps '{self.timesteps}': {did_you_mean(self.timesteps, TIMESTEPS)}"
            )

    def protocol(self, pipeline: Any) -> dict[str, object]:
        """What a reader needs to repeat it."""
        record = asdict(self) | {
            "pipeline": type(pipeline).__name__,
            "scheduler": type(pipeline.scheduler).__name__,
        }
        return {k: list(v) if isinstance(v, tuple) else v for k, v in record.items()}


def sample_calls(pipeline: Any, sampling: Sampling) -> Iterator[list[Call]]:
    """Run the pipeline batch by batch; yields the denoiser calls of each batch of samples."""
    pool = conditions(pipeline, sampling.labels, sampling.prompts)
    order = _permutation(sampling, "conditions")
    places = _permutation(sampling, "timesteps")
    low, high = TIMESTEPS[sampling.timesteps]
    for first in range(0, sampling.num_samples, sampling.batch_size):
        items = range(first, min(first + sampling.batch_size, sampling.num_samples))
        batch = [pool[order[i] % len(pool)] for i in items]
        seeds = [item_seed(f"{sampling.purpose} noise", sampling.seed, i) for i in items]
        steps = _record(pipeline, batch, seeds, sampling)
        taken = []
        for row, item in enumerate(items):
            place = low + (high - low) * (places[item] + 0.5) / sampling.num_samples
            step = steps[min(int(place * len(steps)), len(steps) - 1)]
            taken.append([take_item(call, row, len(batch)) for call in step])
        yield [merged for calls in zip(*taken, strict=True) for merged in merge_calls(calls)]


def _permutation(sampling: Sampling, what: str) -> list[int]:
    seed = item_seed(f"{sampling.purpose} {what}", sampling.seed, 0)
    generator = torch.Generator().manual_seed(seed)
    return torch.randperm(sampling.num_samples, generator=generator).tolist()


def _record(
    pipeline: Any, batch: Sequence[Any], seeds: Sequence[int], sampling: Sampling
) -> list[list[Call]]:
    """The denoiser calls of one sampling run, grouped by denoising step."""
    steps: list[list[Call]] = []
    last: list[Any] = [None]

    def hook(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        call = Call(args, kwargs).map(_copy_to_cpu)
        timestep = next((kwargs[k] for k in ("timestep", "timesteps", "t") if k in kwargs), None)
        now = timestep.flatten()[0].item() if isinstance(timestep, Tensor) else timestep
        # Two calls at one timestep (condition, then none) are one step.
        if not steps or now is None or now != last[0]:
            steps.append([])
        last[0] = now
        steps[-1].append(call)

    handle = pipeline.transformer.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        draw(pipeline, batch, seeds, sampling.num_inference_steps, sampling.guidance_scale)
    finally:
        handle.remove()
    if not steps:
        raise ModelError(f"{type(pipeline).__name__} never called its transformer while sampling")
    return steps


def _copy_to_cpu(leaf: Any) -> Any:
    return leaf.detach().to("cpu", copy=True) if isinstance(leaf, Tensor) else leaf


def take_item(call: Call, row: int, batch_size: int) -> Call:
    """One item of a batched call: its row, or its rows where guidance stacks several batches."""
    num_rows = call.sample().shape[0]
    if num_rows % batch_size:
        raise ModelError(
            f"the denoiser was called with {num_rows} rows for {batch_size} images; "
            "expected a multiple; sample with --batch-size 1"
        )
    rows = torch.arange(row, num_rows, batch_size)
    return call.map(lambda leaf: leaf[rows] if _has_rows(leaf, num_rows) else leaf)


def _has_rows(leaf: Any, num_rows: int) -> bool:
    return isinstance(leaf, Tensor) and leaf.ndim > 0 and leaf.shape[0] == num_rows


def merge_calls(calls: Sequence[Call]) -> list[Call]:
    """One call of all rows where everything else agrees, else the calls as they are."""
    columns = list(zip(*(call.leaves() for call in calls), strict=True))
    num_rows = calls[0].sample().shape[0]
    merged = []
    for leaves in columns:
        first = leaves[0]
        if all(_has_rows(leaf, num_rows) and leaf.shape == first.shape for leaf in leaves):
            merged.append(torch.cat(leaves))
        elif all(_same(leaf, first) for leaf in leaves):
            merged.append(first)
        else:
            return list(calls)
    values = iter(merged)
    return [calls[0].map(lambda _: next(values))]


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.shape == b.shape and a.dtype == b.dtype and bool((a == b).all())
    return type(a) is type(b) and a == b
