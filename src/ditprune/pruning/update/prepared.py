"""What do all updates of a denoiser begin with? Its layers as they are, and the Grams."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from ditprune.calls import NUM_BINS, Call
from ditprune.checkpoints.statistics_file import Statistics
from ditprune.method.recipe import Recipe
from ditprune.progress import Progress
from ditprune.pruning.plan import read_module
from ditprune.pruning.update.gradients import check_gradients
from ditprune.pruning.update.grams import Grams
from ditprune.pruning.update.layers import Layer, prepare_layers
from ditprune.targets.discover import Target

DEFAULT_GRAM_BYTES = 4_000_000_000


@dataclass(frozen=True, eq=False)
class UpdateInputs:
    """What updating the targets of a loaded denoiser takes beside a recipe.

    Args:
        calls: calibration calls on the denoiser's device.
        max_gram_bytes: None is 4 GB.
    """

    denoiser: nn.Module
    targets: Mapping[str, Target]
    stats: Statistics | None
    calls: Sequence[Call]
    progress: Progress
    max_gram_bytes: int | None = None

    @property
    def gram_bytes(self) -> int:
        """What Grams may take together."""
        return DEFAULT_GRAM_BYTES if self.max_gram_bytes is None else self.max_gram_bytes


@dataclass(frozen=True, eq=False)
class Prepared:
    """Every layer before anything is removed, and the Grams of their inputs when asked for.

    They are the same at every share of a recipe.
    """

    layers: Mapping[str, Layer]
    grams: Grams


def prepare_all(inputs: UpdateInputs, recipe: Recipe) -> Prepared:
    """Raises ModelError where a recipe takes gradients and there are none."""
    denoiser, targets, stats = inputs.denoiser, inputs.targets, inputs.stats
    if needs_gradients(recipe):
        check_gradients(denoiser, targets, inputs.calls)
    layers = prepare_layers(targets, read_module(denoiser), stats, recipe)
    calls, progress = inputs.calls, inputs.progress
    grams = Grams(denoiser, targets, calls, recipe, inputs.gram_bytes, progress, num_bins(stats))
    return Prepared(layers, grams)


def num_bins(stats: Statistics | None) -> int:
    """Of the way from noise to image, in statistics or without any."""
    return NUM_BINS if stats is None else stats.num_bins


def needs_gradients(recipe: Recipe) -> bool:
    """Whether a recipe runs the denoiser backwards."""
    sees_output = recipe.allocation == "proxy" or recipe.objective == "output"
    return recipe.refinement is not None or sees_output
