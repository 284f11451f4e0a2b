"""What a recipe that updates weights will take, for `prune --dry-run`."""

from __future__ import annotations

from dataclasses import replace

import torch

from ditprune.checkpoints.locate import ModelFolder
from ditprune.checkpoints.skeleton import skeleton
from ditprune.cli import console
from ditprune.denoiser.rows import num_rows
from ditprune.errors import ModelError
from ditprune.method.recipe import Recipe
from ditprune.pruning.forecast import UpdateForecast, forecast_updates, measured_rate, row_cost
from ditprune.pruning.job import Job
from ditprune.pruning.update.folder import Source, calls_of
from ditprune.reporting import numbers

# Where there is no GPU to measure: what one of the larger ones does in float32.
_ASSUMED_RATE = 40e12


def show_update_forecast(
    model: ModelFolder, job: Job, recipe: Recipe, source: Source, prefix: str
) -> None:
    """Stages, time on this CPU and on one GPU, and memory."""
    targets, total = job.selection.targets, 0
    first = None
    for call in calls_of(job, source):
        first, total = first or call, total + num_rows(call)
    assert first is not None  # as `check_source` has seen
    try:
        one = row_cost(skeleton(model.denoisers[job.name]), targets, first)
    except ModelError as error:
        console.out.print(f"{prefix}{error}", markup=False)
        return
    size, most = job.selection.num_parameters, source.max_gram_bytes
    expected = forecast_updates(targets, recipe, one, total, size, most)
    console.out.print(
        f"{prefix}before that it updates the weights of the loaded denoiser, from {total:,} rows "
        f"of calls; Grams take {expected.num_passes} passes over them\n"
        f"{prefix}  memory: about {numbers.size(expected.peak_bytes)} and the activations of "
        f"a batch\n{prefix}  {_times(expected, 'this CPU', measured_rate(), 'measured')}\n"
        f"{prefix}  {_on_gpu(expected)}",
        markup=False,
    )
    for words, other in _cheaper(recipe).items():
        less = forecast_updates(targets, other, one, total, size, most)
        console.out.print(
            f"{prefix}  with {words}: {numbers.size(less.peak_bytes)}; {_on_gpu(less)}",
            markup=False,
        )


def _cheaper(recipe: Recipe) -> dict[str, Recipe]:
    """What to ask for where it takes too long: the flags, and the recipe they make."""
    found = {}
    if recipe.allocation == "sensitivity":
        recipe = replace(recipe, allocation="proxy")
        found["--allocation proxy"] = recipe
    if recipe.refinement is not None:
        mask = "reconstruction" if recipe.mask == "refinement" else recipe.mask
        flags = [*found, f"--refinement none --mask {mask}"]
        found[" ".join(flags)] = replace(recipe, refinement=None, mask=mask)
    return found


def _on_gpu(expected: UpdateForecast) -> str:
    if torch.cuda.is_available():
        return _times(expected, "this GPU", measured_rate("cuda"), "measured")
    return _times(expected, "one GPU", _ASSUMED_RATE, "assumed, for there is none here")


def _times(expected: UpdateForecast, where: str, rate: float, how: str) -> str:
    stages = ", ".join(
        f"{name} {numbers.duration(value / rate)}"
        for name, value in expected.num_operations.items()
    )
    total = numbers.duration(sum(expected.num_operations.values()) / rate)
    return f"on {where}, at {rate / 1e12:.3g} TFLOP/s ({how}): about {total} ({stages})"
