"""Which command lines repeat a run: from its manifest, or from the values that Python was given."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping
from decimal import Decimal
from typing import Any

from ditprune.method.allocation import ALLOCATIONS
from ditprune.method.distill import REFINEMENTS
from ditprune.method.granularity import GRANULARITIES
from ditprune.method.recipe import Recipe
from ditprune.method.reconstruction import RECONSTRUCTIONS
from ditprune.method.saliency import SALIENCIES
from ditprune.method.statistics.collected import TIMESTEP_WEIGHTINGS
from ditprune.writing.files import MANIFEST

# The file names that the commands use for what one of them writes and the next one reads.
STATISTICS, CALLS, PROMPTS = "stats.safetensors", "calls", "prompts.txt"
MASK = "mask.safetensors"
# Fields whose option has another name, and fields whose option is given once for each value.
_NAMES = {"names": "metrics", "layers": "include", "pipeline_options": "pipeline_option"}
_REPEATED = ("layers", "pipeline_options")

# The words of a recipe in a manifest: those that name a choice, and all of them.
_CHOICES: dict[str, Any] = {
    "saliency": SALIENCIES,
    "granularity": GRANULARITIES,
    "reconstruction": RECONSTRUCTIONS,
    "refinement": REFINEMENTS,
    "allocation": ALLOCATIONS,
    "timestep_weighting": TIMESTEP_WEIGHTINGS,
}
_CONSTANTS = ("weight_power", "activation_power", "cag_threshold")
_WORDS = {*Recipe.__dataclass_fields__, *_CONSTANTS, "pattern"} | {
    f"{word}_constants" for word in ("reconstruction", "refinement")
}
# The options of `calibrate` as they stand in a manifest: their types and their defaults.
CALIBRATE_OPTIONS: dict[str, tuple[Any, Any]] = {
    "num_samples": (int, 128),
    "timesteps": (str, "uniform"),
    "num_inference_steps": (int, None),
    "guidance_scale": ((int, float), None),
    "labels": (list, None),
    "prompts": (list, None),
    "seed": (int, 0),
    "batch_size": (int, 16),
    "height": (int, None),
    "width": (int, None),
    "pipeline_options": (Mapping, {}),
    "num_bins": (int, 10),
}
_COUNTS = ("num_samples", "num_inference_steps", "batch_size", "height", "width", "num_bins")


def repeat_commands(
    dense: str, out: str, claims: Mapping[str, Any]
) -> tuple[str | None, str | None]:
    """The `ditprune calibrate` and the `ditprune prune` that make the folder `out` from `dense`.

    A model that got its mask from another one has a single command, `ditprune mask apply`: the
    recipe in its manifest belongs to the other model and would remove other weights here.

    Args:
        claims: `recipe`, `statistics` and `mask` of a manifest, as plain JSON values.

    Returns:
        None if a command cannot be reconstructed. There is no second command if the recipe holds
        choices that the command line does not know, and then no first one either. There is no
        first command if the manifest does not say how the statistics were collected.
    """
    if claims.get("mask"):
        return None, shlex.join(["ditprune", "mask", "apply", dense, MASK, "-o", out])
    recipe: Any = claims.get("recipe")
    stats = claims.get("statistics")
    if not _is_known(recipe):
        return None, None
    calls = ["--calibration-set", CALLS] if _needs_calls(recipe) else []
    read = [] if stats is None else ["--statistics", STATISTICS]
    prune = ["ditprune", "prune", dense, "-o", out, *read, *calls, "--recipe", MANIFEST]
    options = _calibrate_options(stats)
    if options is None:
        return None, shlex.join(prune)
    calibrate = ["ditprune", "calibrate", dense, "-o", STATISTICS, *calls, *options]
    return shlex.join(calibrate), shlex.join(prune)


def options_of(given: Any, defaults: Any) -> Iterator[str]:
    """The options that turn the dataclass `defaults` into `given`, which has the same fields.

    Prompts become `prompts.txt`, a file with one prompt in each line.
    """
    return _changed(vars(given), vars(defaults))


def _changed(values: Mapping[str, Any], defaults: Mapping[str, Any]) -> Iterator[str]:
    for name, value in values.items():
        if value != defaults.get(name):
            for text in _texts(name, value):
                yield from ("--" + _NAMES.get(name, name).replace("_", "-"), text)


def _texts(name: str, value: Any) -> list[str]:
    """The values of an option, one for each time that it is given."""
    if name == "prompts":
        return [PROMPTS]
    if name == "max_memory":
        return [f"{Decimal(value) / 1000}KB"]
    if isinstance(value, Mapping):
        return [f"{key}={json.dumps(item, default=str)}" for key, item in value.items()]
    if isinstance(value, (tuple, list)):
        texts = [str(item) for item in value]
        return texts if name in _REPEATED else [",".join(texts)]
    return [str(value).removeprefix("torch.")]


def _is_known(recipe: Any) -> bool:
    """Whether the command line knows every word and every choice of a recipe."""
    if not isinstance(recipe, Mapping) or not {"saliency"} <= recipe.keys() <= _WORDS:
        return False
    if not isinstance(recipe.get("cag_threshold", 0.0), (int, float)):
        return False
    choices = {word: recipe[word] for word in _CHOICES if word in recipe}
    if isinstance(recipe.get("pattern"), str) and choices.get("granularity") is None:
        choices.pop("granularity", None)  # the pattern stands in its place
    return all(isinstance(name, str) and name in _CHOICES[word] for word, name in choices.items())


def _needs_calls(recipe: Mapping[str, Any]) -> bool:
    """Whether pruning replays calibration calls; `Recipe.needs_calls` says the same."""
    return (
        recipe.get("reconstruction", "none") != "none"
        or recipe.get("refinement", "none") != "none"
        or recipe.get("allocation") in ("sensitivity", "proxy")
    )


def _calibrate_options(stats: Any) -> list[str] | None:
    """The options of `calibrate`, from `statistics` of a manifest; None if it does not know all."""
    protocol = stats.get("protocol") if isinstance(stats, Mapping) else None
    if not isinstance(protocol, Mapping) or protocol.get("purpose") != "calibration":
        return None
    options = {name: protocol[name] for name in CALIBRATE_OPTIONS if protocol.get(name) is not None}
    if not all(isinstance(value, CALIBRATE_OPTIONS[name][0]) for name, value in options.items()):
        return None
    if any(options[name] < 1 for name in _COUNTS if name in options):
        return None
    return list(
        _changed(options, {name: default for name, (_, default) in CALIBRATE_OPTIONS.items()})
    )
