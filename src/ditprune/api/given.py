"""What was a function given? Denoisers, calls and statistics in the forms that people have."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from ditprune.api.calls import Calls, load_calls
from ditprune.calls import Call
from ditprune.checkpoints.calibration_set import CalibrationSet
from ditprune.checkpoints.locate import ModelFolder, locate
from ditprune.checkpoints.statistics_file import Statistics, read_statistics_file
from ditprune.denoiser.capture import denoisers_of
from ditprune.denoisers import DENOISER
from ditprune.errors import ModelError, RecipeError, StatisticsError
from ditprune.method.choices import as_globs
from ditprune.targets.blocks import Globs
from ditprune.targets.wrapped import unwrapped
from ditprune.writing.paths import path_of


def read_denoisers(model: Any) -> dict[str, nn.Module]:
    """The denoisers of a pipeline by component, or one denoiser alone. Raises ModelError."""
    if isinstance(model, nn.Module):
        return {DENOISER: unwrapped(model)}
    if isinstance(getattr(model, "components", None), Mapping):
        if denoisers := denoisers_of(model):
            return {name: unwrapped(denoiser) for name, denoiser in denoisers.items()}
        raise ModelError(
            f"{type(model).__name__}: no component is a denoiser with a transformer; pass the "
            "denoiser itself"
        )
    hint = "; a folder is pruned by ditprune.prune" if isinstance(model, (str, Path)) else ""
    raise ModelError(
        f"model: {type(model).__name__} given, expected a diffusers pipeline or a denoiser "
        f"(torch.nn.Module){hint}"
    )


def located(model: Any) -> ModelFolder:
    """The folder of a model that is not in memory. Raises ModelError."""
    if not isinstance(model, (str, Path)):
        raise ModelError(
            f"model: {type(model).__name__} given, expected a folder, a hub id or 'bundled'; what "
            "is in memory is pruned by ditprune.prune_"
        )
    return locate(str(model))


def globs_given(blocks: Any) -> Globs:
    """Globs that say where blocks are, for all denoisers or by name. Raises RecipeError."""
    if isinstance(blocks, Mapping):
        return {name: as_globs("blocks", globs) for name, globs in blocks.items()}
    return as_globs("blocks", blocks)


def yes_or_no(word: str, given: Any) -> bool:
    """It, if it is True or False. Raises RecipeError; the text "False" would count as True."""
    if not isinstance(given, bool):
        raise RecipeError(f"{word}={given!r:.60}: expected True or False")
    return given


def read_statistics(given: Statistics | str | Path | None) -> dict[str, Statistics] | None:
    """The statistics of each denoiser. Raises StatisticsError."""
    if given is None:
        return None
    if isinstance(given, Statistics):
        return dict(given.denoisers)
    if not isinstance(given, (str, Path)):
        raise StatisticsError(
            f"statistics: {type(given).__name__} given, expected what ditprune.calibrate returns, "
            "or its file"
        )
    return read_statistics_file(path_of(given))


def load_statistics(file: str | Path) -> Statistics:
    """The statistics that `Statistics.save` or `ditprune calibrate` wrote, of all denoisers.

        stats = ditprune.load_statistics("stats.safetensors")
        print(stats, stats.denoisers.keys())
        plan = ditprune.inspect(pipe, stats)

    Raises StatisticsError for a missing, damaged or other file.
    """
    return Statistics.joined(read_statistics_file(path_of(file, StatisticsError)))


def read_batches(
    given: Any, names: Iterable[str], is_alone: bool = False
) -> dict[str, Iterable[Any] | None]:
    """The batches of each denoiser: from `Calls`, their folder, or whatever `calibrate` takes.

    A single denoiser takes all batches, whatever component they name. Of `Calls` of several
    denoisers a pipeline takes its own; which of them a denoiser alone is, nobody knows.

    Args:
        is_alone: whether the denoiser was given without a pipeline.

    Raises ModelError.
    """
    names = tuple(names)
    if isinstance(given, Iterator):
        given = _unused(given)
    if given is None:
        return dict.fromkeys(names)
    if isinstance(given, (str, Path)):
        given = load_calls(given)
    if isinstance(given, Calls):
        recorded = given.denoisers
        if len(names) == 1 and len(recorded) == 1:
            return {names[0]: next(iter(recorded.values()))}
        if is_alone and len(recorded) > 1:
            raise ModelError(
                f"batches: calls of {', '.join(recorded)}, and a denoiser without its pipeline; "
                "pass calls['…'] of that denoiser"
            )
        if missing := [name for name in names if name not in recorded]:
            raise ModelError(
                f"batches: calls of {', '.join(recorded) or 'no denoiser'}, none of {missing[0]}; "
                "sample the whole pipeline, or pass calls['…'] for one denoiser"
            )
        return {name: recorded[name] for name in names}
    if not isinstance(given, Iterable):
        raise ModelError(
            f"batches: {type(given).__name__} given, expected calls, their folder, or a list of "
            "arguments for the denoiser's forward"
        )
    if len(names) == 1:
        return {names[0]: given}
    calls = [Call.of(batch) for batch in given]
    return {name: [call for call in calls if call.denoiser == name] for name in names}


def _unused(given: Iterator[Any]) -> Iterable[Any]:
    """An iterator whose first item is there. Raises ModelError for one that is used up."""
    first = list(itertools.islice(given, 1))
    if not first:
        raise ModelError(
            "batches: an iterator without items, as a generator is after ditprune.calibrate has "
            "read it; keep the calls in a list and pass that to each function"
        )
    return itertools.chain(first, given)


def component_alone(calls: CalibrationSet, model: ModelFolder) -> str | None:
    """Whose calls a denoiser's folder without a pipeline takes; None for a pipeline.

    It takes those of its folder's name, as with masks, or the only ones there are.

    Raises ModelError where it is not known which calls are its own.
    """
    if model.is_pipeline or calls.missing():
        return None
    names, folder = tuple(calls.num_calls()), model.root.resolve().name
    if folder in names:
        return folder
    if len(names) > 1:
        raise ModelError(
            f"--calibration-set {calls.folder}: calls of {', '.join(names)}, and {model.name} is a "
            "denoiser without its pipeline; prune it inside the pipeline's folder"
        )
    return next(iter(names), None)
