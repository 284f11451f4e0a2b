"""How a pruned model was made, as a command line, from what its manifest tells."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

# Words of a recipe that are what they are without a flag.
_DEFAULTS: dict[str, Any] = {
    "reconstruction": "none", "mask": "saliency", "allocation": "uniform",
    "timestep_weighting": "uniform", "refinement": "none",
}  # fmt: skip
_ADJUSTING = {"reconstruction": "none", "refinement": "none"}
_FLAGS = (
    "saliency", "weight_power", "activation_power", "granularity", "cag_threshold", "sparsity",
    "pattern", "reconstruction", "mask", "allocation", "timestep_weighting", "refinement",
)  # fmt: skip


def mask_command(dense: str, name: str) -> str:
    """The command that puts a mask, named `mask.safetensors`, onto `dense` into a folder `name`.

    The recipe in its manifest is of the model that the mask was taken from: on this one it would
    remove other weights.
    """
    return shlex.join(["ditprune", "mask", "apply", dense, "mask.safetensors", "-o", name])


def prune_command(dense: str, name: str, recipe: Mapping[str, Any], needs_statistics: bool) -> str:
    """The command that prunes `dense` into a folder `name` by this recipe.

    Statistics are named `stats.safetensors`, as `ditprune calibrate dense -o stats.safetensors`
    writes them; calibration calls, where weights are adjusted, `calls`.
    """
    words = ["ditprune", "prune", dense, "-o", name]
    if needs_statistics:
        words += ["--statistics", "stats.safetensors"]
    if any(recipe.get(word, plain) != plain for word, plain in _ADJUSTING.items()):
        words += ["--calibration-set", "calls"]
    for word in _FLAGS:
        value = recipe.get(word)
        if value is not None and value != _DEFAULTS.get(word):
            words += ["--" + word.replace("_", "-"), f"{value}"]
    for word in ("include", "exclude"):
        patterns = recipe.get(word)
        for pattern in patterns if isinstance(patterns, (list, tuple)) else ():
            words += [f"--{word}", str(pattern)]
    if recipe.get("auxiliary"):
        words.append("--auxiliary")
    return shlex.join(words)
