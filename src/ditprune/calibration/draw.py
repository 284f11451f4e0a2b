"""Which condition and which seed does an item have, and how is a pipeline called with them?"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch

from ditprune import bundled
from ditprune.errors import (
    DitpruneError,
    ModelError,
    RecipeError,
    is_out_of_memory,
    reason_of,
)
from ditprune.method import numbers

_CONDITIONS = {"labels": int, "prompts": str}
_EXAMPLES = {"prompts": "prompts=['a fox in snow']", "labels": "labels=[3, 7]"}


def item_seed(purpose: str, seed: int, item: int) -> int:
    """A 63-bit seed of one item; different purposes never share noise."""
    digest = hashlib.sha256(f"{purpose}:{seed}:{item}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def as_conditions(word: str, given: Any) -> tuple[Any, ...] | None:
    """`labels` or `prompts` as a tuple. Raises RecipeError; a text would be a list of letters."""
    if given is None:
        return None
    items = () if isinstance(given, str) or not isinstance(given, Iterable) else tuple(given)
    if word == "labels":
        items = tuple(numbers.integer(word, item) for item in items)
    if not items or not all(isinstance(item, _CONDITIONS[word]) for item in items):
        raise RecipeError(f"{word}={given!r:.60}: expected a list, as in {_EXAMPLES[word]}")
    return items


def condition_argument(pipeline: Any) -> str:
    """The pipeline's argument for what to draw: `class_labels` or `prompt`.

    Raises RecipeError if the pipeline takes neither, or needs further arguments.
    """
    parameters = inspect.signature(pipeline.__call__).parameters
    argument = next((name for name in ("class_labels", "prompt") if name in parameters), None)
    needed = [
        name
        for name, parameter in parameters.items()
        if parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
        and name != argument
    ]
    if argument is None or needed:
        what = f"needs {', '.join(needed)}" if argument else "takes neither class_labels nor prompt"
        raise RecipeError(
            f"{type(pipeline).__name__} {what}; run it yourself inside "
            "`with ditprune.recorded(denoiser) as calls:` and use ditprune.calibrate"
        )
    return argument


def conditions(
    pipeline: Any, labels: Sequence[int] | None, prompts: Sequence[str] | None
) -> list[Any]:
    """The labels or prompts to draw; by default every known class, or the bundled prompts."""
    argument = condition_argument(pipeline)
    if argument == "class_labels":
        if prompts:
            raise RecipeError(
                f"{type(pipeline).__name__} draws class labels; pass --labels, not --prompts"
            )
        num_classes = pipeline.transformer.config.num_embeds_ada_norm
        # A class that has several names has several entries.
        known = sorted(set(pipeline.labels.values())) or list(range(num_classes))
        for label in labels or ():
            if not 0 <= label < num_classes:
                raise RecipeError(
                    f"--labels {label}: expected class ids from 0 to {num_classes - 1}"
                )
        return list(labels or known)
    if labels:
        raise RecipeError(f"{type(pipeline).__name__} draws prompts; pass --prompts, not --labels")
    return list(prompts or bundled.load_prompts())


def in_turn(pool: Sequence[Any], num_items: int) -> list[Any]:
    """The conditions that items draw in turn: all of them, or one for each item if items are fewer.

    Those are spread evenly over the pool, in its order, so that no part of it is left out.
    """
    num_drawn = min(num_items, len(pool))
    return [pool[i * len(pool) // num_drawn] for i in range(num_drawn)]


def of_items(pool: Sequence[Any], num_items: int) -> list[Any]:
    """The condition of each item."""
    drawn = in_turn(pool, num_items)
    return [drawn[i % len(drawn)] for i in range(num_items)]


def check_options(pipeline: Any, **options: Any) -> dict[str, Any]:
    """The options that are not None. Raises RecipeError for one that the pipeline does not take."""
    parameters = inspect.signature(pipeline.__call__).parameters
    given = {name: value for name, value in options.items() if value is not None}
    for name in given:
        if name not in parameters:
            raise RecipeError(
                f"{name}: {type(pipeline).__name__} takes no such option; leave it out"
            )
    return given


def run(pipeline: Any, batch: Sequence[Any], seeds: Sequence[int], **options: Any) -> Any:
    """Run the pipeline for these conditions; each item has noise from its own seed.

    Raises ModelError for what the pipeline itself raises.
    """
    if isinstance(options.get("negative_prompt"), str):
        options["negative_prompt"] = [options["negative_prompt"]] * len(batch)
    given = check_options(pipeline, **options)
    condition = {condition_argument(pipeline): list(batch)}
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    try:
        return pipeline(**condition, **given, generator=generators)
    except Exception as error:  # of any kind: pipelines check little
        if isinstance(error, DitpruneError) or is_out_of_memory(error):
            raise
        words = ", ".join(f"{word}={value!r:.40}" for word, value in given.items())
        raise ModelError(
            f"{type(pipeline).__name__} failed ({reason_of(error)}); it was called with {words}; "
            "where it needs more, as an image, run it yourself inside `with "
            "ditprune.recorded(denoiser) as calls:` and use ditprune.calibrate"
        ) from error


def draw(pipeline: Any, batch: Sequence[Any], seeds: Sequence[int], **options: Any) -> Any:
    """Images [N, H, W, C], or the frames of videos [N, F, H, W, C], in [0, 1] as numpy.

    Raises RecipeError for a pipeline that draws neither.
    """
    output = run(pipeline, batch, seeds, output_type="np", **options)
    drawn = getattr(output, "images", None)
    drawn = getattr(output, "frames", None) if drawn is None else drawn
    if drawn is None:
        raise RecipeError(
            f"{type(pipeline).__name__} draws no images; evaluate compares images or frames"
        )
    return np.asarray(drawn)
