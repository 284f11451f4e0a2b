"""What was a function given? Denoisers, calls and statistics in the forms that people have."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from ditprune.api.calls import Calls, load_calls
from ditprune.calls import Call
from ditprune.checkpoints.statistics_file import Statistics, read_statistics_file
from ditprune.denoiser.capture import denoisers_of
from ditprune.denoisers import DENOISER
from ditprune.errors import ModelError


def read_denoisers(model: Any) -> dict[str, nn.Module]:
    """The denoisers of a pipeline by component, or one denoiser alone. Raises ModelError."""
    if isinstance(model, nn.Module):
        return {DENOISER: model}
    if isinstance(getattr(model, "components", None), Mapping):
        if denoisers := denoisers_of(model):
            return denoisers
        raise ModelError(
            f"{type(model).__name__}: no component is a denoiser with a transformer; pass the "
            "denoiser itself"
        )
    hint = "; a folder is pruned by ditprune.prune" if isinstance(model, (str, Path)) else ""
    raise ModelError(
        f"model: {type(model).__name__} given, expected a diffusers pipeline or a denoiser "
        f"(torch.nn.Module){hint}"
    )


def read_statistics(given: Statistics | str | Path | None) -> dict[str, Statistics] | None:
    """The statistics of each denoiser. Raises StatisticsError."""
    if given is None:
        return None
    if isinstance(given, Statistics):
        return dict(given.denoisers)
    return read_statistics_file(Path(given))


def load_statistics(file: str | Path) -> Statistics:
    """The statistics that `Statistics.save` or `ditprune calibrate` wrote, of all denoisers.

        stats = ditprune.load_statistics("stats.safetensors")
        print(stats, stats.denoisers.keys())
        plan = ditprune.inspect(pipe, stats)

    Raises StatisticsError for a missing, damaged or other file.
    """
    return Statistics.joined(read_statistics_file(Path(file)))


def read_batches(given: Any, names: Iterable[str]) -> dict[str, Iterable[Any] | None]:
    """The batches of each denoiser: from `Calls`, their folder, or whatever `calibrate` takes.

    A single denoiser takes all batches, whatever component they name, unless they are `Calls` of
    several denoisers. Raises ModelError.
    """
    names = tuple(names)
    if given is None:
        return dict.fromkeys(names)
    if isinstance(given, (str, Path)):
        given = load_calls(given)
    if isinstance(given, Calls):
        recorded = given.denoisers
        if len(names) == 1 and len(recorded) == 1:
            return {names[0]: next(iter(recorded.values()))}
        if missing := [name for name in names if name not in recorded]:
            raise ModelError(
                f"batches: calls of {', '.join(recorded) or 'no denoiser'}, none of {missing[0]}; "
                "sample the whole pipeline, or pass calls['…'] for one denoiser"
            )
        return {name: recorded[name] for name in names}
    if len(names) == 1:
        return {names[0]: given}
    calls = [Call.of(batch) for batch in given]
    return {name: [call for call in calls if call.denoiser == name] for name in names}
