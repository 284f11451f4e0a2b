"""From a model folder to statistics: sample, observe, resume, share among processes.

Two stages, each made of units that are the same whoever does them and whenever: sampling writes
denoiser calls to a calibration set, observing replays them through each denoiser alone.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from torch import nn

from ditprune.calibration.calibrate import find_unused, observe_calls, warn_of_silence
from ditprune.calibration.draw import conditions
from ditprune.calibration.sample import Sampling, sample_unit
from ditprune.calibration.workers import Worker, add_up
from ditprune.calls import Call
from ditprune.checkpoints import copy_folder as rewrite
from ditprune.checkpoints import fingerprint, manifest, statistics_file
from ditprune.checkpoints.calibration_set import CalibrationSet
from ditprune.checkpoints.compact.compact_folder import open_weights
from ditprune.checkpoints.locate import ModelFolder
from ditprune.checkpoints.skeleton import skeleton
from ditprune.checkpoints.weights import Weights
from ditprune.denoiser.capture import denoisers_of
from ditprune.denoiser.pipeline import load_denoiser, load_pipeline
from ditprune.denoiser.placement import Placement
from ditprune.denoiser.replay import fitting
from ditprune.denoiser.rows import to_placement
from ditprune.errors import ModelError, StatisticsError
from ditprune.method.statistics.collected import NUM_BINS, Statistics, merge
from ditprune.progress import Progress
from ditprune.targets.discover import discover
from ditprune.writing import identity as guard

_MOST_BINS = 1000
_SAVE_EVERY_S = 20.0  # statistics of a large model are hundreds of megabytes


def guard_of(model: ModelFolder, sampling: Sampling, place: Placement) -> dict[str, Any]:
    """What the calls of a calibration depend on.

    Fingerprints tell one denoiser from another; names, sizes and times of all files notice the
    rest, a text encoder or a decoder that was exchanged.
    """
    weights = {
        name: fingerprint.combined(of_denoiser(folder)) for name, folder in model.denoisers.items()
    }
    shards = {name: Weights(folder) for name, folder in model.denoisers.items()}
    versions = manifest.versions()
    words = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(sampling).items()}
    return {
        "weights": weights,
        "files": rewrite.stamp(model, shards),
        "configuration": guard.config_hash(model.root),
        "sampling": words,
        "placement": {"device": place.device, "dtype": str(place.dtype).removeprefix("torch.")},
        "versions": {name: versions[name] for name in ("ditprune", "torch", "diffusers")},
    }


def of_denoiser(folder: Path) -> dict[str, str]:
    """The fingerprints of a denoiser's targets, from its files."""
    targets = discover(skeleton(folder, takes_compact=True), auxiliary=True)
    return fingerprint.of_weights(open_weights(folder), targets.values())


def sample_missing(
    model: ModelFolder, kept: CalibrationSet, sampling: Sampling, place: Placement,
    worker: Worker, progress: Progress,
) -> dict[str, nn.Module]:  # fmt: skip
    """Sample the units of a set that are not there yet; returns the denoisers if it loads them."""
    missing = [unit for unit in kept.missing() if worker.owns(unit)]
    if not missing:
        return {}
    pipeline = load_pipeline(model, place)
    conditions(pipeline, sampling.labels, sampling.prompts)  # refuses before the first bar
    for unit in missing:
        calls, style = sample_unit(pipeline, sampling, unit, tuple(model.denoisers))
        kept.write(unit, calls, asdict(style))
        progress("sampling", kept.num_units - len(kept.missing()), kept.num_units)
    return denoisers_of(pipeline, tuple(model.denoisers))


def observe_set(
    model: ModelFolder, kept: CalibrationSet, work: Path, place: Placement, worker: Worker,
    denoisers: dict[str, nn.Module], progress: Progress,
) -> dict[str, Statistics]:  # fmt: skip
    """The statistics of every denoiser over a complete set, those of all workers together.

    What was observed is kept in `work` from time to time, so that a stopped run goes on.
    """
    gc.collect()  # text encoders and decoders have done their part
    protocol = {**kept.protocol, "denoiser_calls": kept.read(0)[1]}
    collected = {}
    for name, folder in model.denoisers.items():
        denoiser = denoisers.pop(name) if name in denoisers else load_denoiser(folder, place)
        part = work / f"observed-{name}-{worker.rank}-of-{worker.world}.safetensors"
        own = _observe_units(name, denoiser, folder, kept, part, place, worker, progress)
        total = add_up(own, worker)
        if total is None:
            raise unreached(model, name)
        if worker.is_first:
            # Of the first call there is, whoever observed it.
            first = to_placement(_first_call(name, kept), place.device, place.dtype)
            total = replace(total, unused=find_unused(denoiser, first, total.fingerprints))
            warn_of_silence(total, f"{name}: " if len(model.denoisers) > 1 else "")
        del denoiser
        collected[name] = replace(total, protocol=protocol)
    return collected


def unreached(model: ModelFolder, name: str) -> StatisticsError:
    """The refusal of a set in which no call is a denoiser's."""
    return StatisticsError(
        f"{model.name}: no calibration call reached its {name}; sample with the pipeline's own "
        "number of steps, or all of the timesteps"
    )


def _first_call(name: str, kept: CalibrationSet) -> Call:
    units = (kept.read(unit)[0] for unit in range(kept.num_units))
    return next(call for calls in units for call in calls if call.denoiser == name)


def _observe_units(
    name: str, denoiser: nn.Module, folder: Path, kept: CalibrationSet, part: Path,
    place: Placement, worker: Worker, progress: Progress,
) -> Statistics | None:  # fmt: skip
    """What this worker's units add up to for one denoiser."""
    own = of_denoiser(folder)
    units = [unit for unit in range(kept.num_units) if worker.owns(unit)]
    done, total = _restore(part)
    saved_at = time.monotonic()
    for number, unit in enumerate(units[done:], start=done + 1):
        calls = [call for call in kept.read(unit)[0] if call.denoiser == name]
        if calls:
            more = _observe(denoiser, calls, own, place, kept)
            total = more if total is None else merge(total, more)
        if time.monotonic() - saved_at > _SAVE_EVERY_S:
            _save(part, number, total)
            saved_at = time.monotonic()
        progress(f"observing {name}", number, len(units))
    return total


def _observe(
    denoiser: nn.Module, calls: Iterable[Call], own: dict[str, str], place: Placement,
    kept: CalibrationSet,
) -> Statistics:  # fmt: skip
    num_bins = num_bins_of(kept)

    def moved() -> Iterator[Call]:
        for call in calls:
            yield to_placement(call, place.device, place.dtype)

    with fitting(kept.folder):
        return observe_calls(denoiser, moved(), own, num_bins)


def num_bins_of(kept: CalibrationSet) -> int:
    """The parts of the way that a set was sampled in. Raises ModelError."""
    given = kept.protocol.get("num_bins", NUM_BINS)
    if not isinstance(given, int) or not 1 <= given <= _MOST_BINS:
        raise ModelError(
            f"{kept.folder}: its num_bins is {given!r}, expected 1 to {_MOST_BINS}; sample it again"
        )
    return given


def _restore(part: Path) -> tuple[int, Statistics | None]:
    """How many of a worker's units were observed before it was stopped, and what they gave."""
    if not part.is_file():
        return 0, None
    (statistics,) = statistics_file.load(part).values()
    protocol = dict(statistics.protocol)
    return int(str(protocol["num_units"])), replace(statistics, protocol={})


def _save(part: Path, num_units: int, statistics: Statistics | None) -> None:
    if statistics is not None:
        marked = replace(statistics, protocol={"num_units": num_units})
        statistics_file.save({"observed": marked}, part)
