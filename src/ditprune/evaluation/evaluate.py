"""`evaluate`: what the caller gave, in folders or in memory, as models to compare."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from ditprune.calibration.workers import Worker
from ditprune.checkpoints.locate import locate
from ditprune.denoiser.placement import Placement
from ditprune.errors import RecipeError
from ditprune.evaluation.compare import compare
from ditprune.evaluation.in_memory import (
    AnyModel,
    ModelInMemory,
    denoiser_in_memory,
    pipeline_in_memory,
)
from ditprune.evaluation.place import check_results_place
from ditprune.evaluation.user_judge import Judge, UserJudge
from ditprune.evaluation.words import placement_of, read_words
from ditprune.reporting.bars import ProgressArgument, telling
from ditprune.writing.paths import path_of


def evaluate(
    dense: Any,
    pruned: Sequence[str | Path] | Mapping[str, Any],
    out: str | Path,
    *,
    judge: Judge | None = None,
    progress: ProgressArgument = None,
    worker: Worker | None = None,
    command: str | None = None,
    **words: Any,
) -> dict[str, Any]:
    """Draw the same seeds with a dense model and its pruned ones, and measure the difference.

        result = ditprune.evaluate(pipe, {"p50": pruned_pipe}, "eval", num_images=4, num_held_out=8)
        ssim = result["models"][1]["metrics"]["ssim"]
        print(ssim["value"], ssim["low"], ssim["high"])

    Only denoisers are compared: everything else is the dense pipeline's, also where a pruned model
    is a pipeline. What is in memory runs where it is and stays as it is, so `device` and `dtype`
    are for folders. Images are kept in `out/.images` until a run ends, and those of the dense
    model beyond it: a stopped run goes on, and another denoiser never gets them.

    A judge is called batch by batch, at times twice, with images as numpy uint8 [N, H, W, 3] (grey
    ones have three equal colours) and the N conditions they were drawn for: class ids as int,
    prompts as str. It returns a dict from names to N numbers each. The names become metrics with a
    95 % interval: Wilson's for zeros and ones, else bootstrap. NaN says that a condition has no
    such number; it must be NaN for every model. Higher is better, unless the judge has an
    attribute `better`, such as `{"artifacts": "lower"}`.

    Args:
        dense: a diffusers pipeline in memory or its folder, a hub id or `bundled`.
        pruned: folders, which are named as they are; or a mapping from names to folders, to
            pipelines in memory or to denoisers in memory.
        out: folder for `results.json` and `grid.png`; it is created if it does not exist.
        judge: your own metrics: f(images, conditions) → dict of name → N numbers.
        progress: is told how far the work is; see `ditprune.api`.
        worker: which share of the images is this process's; the default works alone.
        command: the command line that is running, for the record.
        words: what is drawn: `num_images` (500), `seed`, `num_inference_steps`, `guidance_scale`,
            `labels`, `prompts`, `num_held_out` (128 denoiser calls for the relative error),
            `batch_size` (50), `height` and `width` in pixels, `pipeline_options`. What is
            measured: `metrics` (their names), `feature_extractor`, `reference` (a folder of real
            images), `clip`, `images` (a folder that keeps drawn images). Where folders are
            loaded: `device`, `dtype`, `max_memory` (bytes, or a text such as "8GB").

    Returns:
        The content of results.json: `models` (the dense one first) with `metrics` (`value`, `low`
        and `high`, or None), `sparsity` (the share of zeros in the targets), `accounting` (bytes,
        multiply-accumulates, seconds) and `warnings`; `metrics`, `protocol`, `gallery`.

    Raises:
        RecipeError: a word that is unknown, or does not go with these models or this judge.
        ModelError: a model that is damaged, offloaded, or no copy of the dense one.
        OutputError: the disk refuses.
    """
    protocol, measures, places = read_words(words)
    check_results_place(path_of(out))
    checked = None if judge is None else UserJudge(judge)
    named, dense_model = _named(pruned), _model("dense", dense, None)
    models = [(name, _model(name, given, dense_model)) for name, given in named]
    placement = _placement(places, dense_model, [model for _, model in models])
    with telling(progress) as tell:
        return compare(
            dense_model, models, path_of(out), protocol, tell, placement, worker, measures, command,
            checked,
        )  # fmt: skip


def model_name(folder: str | Path) -> str:
    """The name of a model in the results: that of its folder, also for `.` and `..`."""
    path = Path(folder)
    return path.name if path.name not in ("", "..") else path.resolve().name


def _named(pruned: Any) -> Sequence[tuple[str, Any]]:
    """Names and models. Raises RecipeError."""
    if isinstance(pruned, Mapping):
        models = list(pruned.items())
    elif isinstance(pruned, Sequence) and not isinstance(pruned, str):
        models = [(model_name(given) if _is_path(given) else None, given) for given in pruned]
    else:
        models = [(None, pruned)]
    for name, given in models:
        if not isinstance(name, str) or not name:
            raise RecipeError(
                f"evaluate: pruned holds {type(given).__name__} without a name; expected a list of "
                'folders, or a mapping from names to models, as in {"half": pipeline}'
            )
    if not models:
        raise RecipeError("evaluate: pruned is empty; expected a model or several")
    return models


def _is_path(given: Any) -> bool:
    return isinstance(given, (str, Path))


def _model(name: str, given: Any, dense: AnyModel | None) -> AnyModel:
    """A model to compare; for `dense` None it is the dense one. Raises DitpruneError."""
    from diffusers import DiffusionPipeline

    if _is_path(given):
        return locate(str(given))
    if isinstance(given, DiffusionPipeline):
        return pipeline_in_memory(given, name)
    if isinstance(given, nn.Module) and dense is not None:
        return denoiser_in_memory(given, name, dense)
    others = "" if dense is None else ", or its denoiser"
    raise RecipeError(
        f"evaluate: {name} is a {type(given).__name__}, expected a folder, a hub id, or a "
        f"diffusers pipeline{others}"
    )


def _placement(places: Mapping[str, Any], dense: AnyModel, pruned: Sequence[AnyModel]) -> Placement:
    """Where models run: where those in memory are, unless words say it of folders.

    Raises RecipeError for a word that no model would obey.
    """
    here = [model for model in (dense, *pruned) if isinstance(model, ModelInMemory)]
    if not isinstance(dense, ModelInMemory):
        return placement_of(places, here[0].placement if here else Placement())
    has_folder = len(here) <= len(pruned)
    obeyed = {"max_memory"} if has_folder else set()
    for word in places.keys() - obeyed:
        raise RecipeError(
            f"evaluate: {word} {places[word]}: the dense pipeline is in memory, and runs where it "
            "is; leave it out, or move the pipeline with .to(…)"
        )
    limit = placement_of(places, Placement()).max_memory
    return replace(dense.placement, max_memory=limit)
