"""Which command lines make a pruned folder again? They follow from its manifest."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping
from dataclasses import Field, fields
from typing import Any

from ditprune.calibration.sample import Sampling
from ditprune.errors import RecipeError
from ditprune.method.choices import flag
from ditprune.method.words import from_json
from ditprune.writing.files import MANIFEST
from ditprune.writing.json_file import MALFORMED

# The file names that the commands use for what one of them writes and the next one reads.
STATISTICS, CALLS, PROMPTS = "stats.safetensors", "calls", "prompts.txt"
MASK = "mask.safetensors"
# The types that a field of `Sampling` has in JSON, by the first word of its annotation.
_KINDS: dict[str, Any] = {
    "int": int, "str": str, "float": (int, float), "tuple": list, "Sequence": list,
    "Mapping": Mapping,
}  # fmt: skip


def repeat_commands(
    dense: str, out: str, claims: Mapping[str, Any],
    recipes: Mapping[str, Any] | None = None,
) -> tuple[str | None, str | None]:  # fmt: skip
    """The `ditprune calibrate` and the `ditprune prune` that make the folder `out` from `dense`.

    A model that got its mask from another one has a single command, `ditprune mask apply`: the
    recipe in its manifest belongs to the other model and would remove other weights here.

    Args:
        claims: `recipe`, `statistics` and `mask` of a manifest, as plain JSON values.
        recipes: that of each denoiser, where there are several that differ.

    Returns:
        None if a command cannot be reconstructed. There is no second command if the recipe holds
        choices that the command line does not know, and then no first one either. There is no
        first command if the manifest does not say how the statistics were collected.
    """
    if claims.get("mask"):
        return None, shlex.join(["ditprune", "mask", "apply", dense, MASK, "-o", out])
    stats: Any = claims.get("statistics")
    try:
        recipe = from_json(claims.get("recipe"), MANIFEST)
    except RecipeError:
        return None, None
    calls = ["--calibration-set", CALLS] if recipe.needs_calls else []
    read = [] if stats is None else ["--statistics", STATISTICS]
    files = [f"{name}={name}/{MANIFEST}" for name in recipes or ()] or [MANIFEST]
    given = [word for file in files for word in ("--recipe", file)]
    prune = ["ditprune", "prune", dense, "-o", out, *read, *calls, *given]
    try:
        options = _sampling_options(stats["protocol"])
    except (*MALFORMED, RecipeError):
        return None, shlex.join(prune)
    blocks = [word for glob in recipe.blocks for word in ("--blocks", glob)]
    calibrate = ["ditprune", "calibrate", dense, "-o", STATISTICS, *calls, *options, *blocks]
    return shlex.join(calibrate), shlex.join(prune)


def _sampling_options(protocol: Mapping[str, Any]) -> list[str]:
    """The options of `calibrate` that are not defaults; prompts stand in a file, one a line.

    Raises one of `MALFORMED`, or RecipeError, if the protocol is not that of a calibration.
    """
    defaults = {part.name: part.default for part in fields(Sampling)}
    given = {name: protocol[name] for name in defaults if protocol.get(name) is not None}
    if not given or given.pop("purpose", "calibration") != "calibration":
        raise ValueError("these calls are not for calibration")
    for part in fields(Sampling):
        if not _is_plausible(part, given.get(part.name)):
            raise ValueError(f"{part.name} is {given[part.name]!r}")
    texts = {"prompts": PROMPTS, "labels": ",".join(map(str, given.get("labels", ())))}
    options = [
        word
        for name, value in given.items()
        if value != defaults[name] and name != "pipeline_options"
        for word in (flag(name), texts.get(name, str(value)))
    ]
    for name, value in given.get("pipeline_options", {}).items():
        options += ["--pipeline-option", f"{name}={json.dumps(value)}"]
    return options


def _is_plausible(part: Field[Any], value: Any) -> bool:
    """Whether a JSON value can be that of a field of `Sampling`; None can be any field's."""
    kind = _KINDS[re.findall(r"\w+", str(part.type))[0]]
    if isinstance(value, str):
        return kind is str and value.isidentifier()
    if isinstance(value, int) and kind is int:
        return not isinstance(value, bool) and value >= (part.name != "seed")  # counts from 1 up
    return value is None or isinstance(value, kind)
