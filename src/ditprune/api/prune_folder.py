"""How is a model folder pruned into another, with what was given and what is still missing?"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from ditprune.api.calls import Calls, load_calls
from ditprune.api.given import component_alone, located, read_batches, read_statistics, yes_or_no
from ditprune.api.memory import Recipes
from ditprune.calibration.collect import calibrate_folder
from ditprune.calibration.sample import Sampling
from ditprune.calibration.workers import Worker
from ditprune.calls import Call
from ditprune.checkpoints.calibration_set import CalibrationSet, load_calibration_set
from ditprune.checkpoints.locate import ModelFolder
from ditprune.checkpoints.statistics_file import Statistics, read_statistics_file
from ditprune.denoiser.placement import Placement, parse_size
from ditprune.errors import RecipeError
from ditprune.method.recipe import Recipe
from ditprune.method.words import build_each
from ditprune.progress import Progress
from ditprune.pruning.job import Outcome, open_jobs
from ditprune.pruning.loop import prune_checkpoint
from ditprune.pruning.scoring import can_score
from ditprune.pruning.update.folder import Source
from ditprune.pruning.update.memory import gram_bytes_within
from ditprune.pruning.update.update import check_needs_calls, check_needs_grams
from ditprune.reporting.bars import ProgressArgument, telling
from ditprune.writing.files import ensure_folder
from ditprune.writing.paths import path_of
from ditprune.writing.staging import check_before, check_early

_log = logging.getLogger("ditprune")


def prune(
    model: str | Path,
    out: str | Path,
    stats: Statistics | str | Path | None = None,
    sparsity: float | Mapping[str, float] | None = None,
    *,
    batches: Any = None,
    device: str | None = None,
    dtype: str | torch.dtype | None = None,
    max_memory: str | int | None = None,
    gram_memory: str | int | None = None,
    overwrite: bool = False,
    progress: ProgressArgument = None,
    recipe: Recipes = None,
    **words: Any,
) -> Outcome:
    """Prune a model folder into another, tensor by tensor. The default is the paper at 50 %.

        outcome = ditprune.prune("bundled", "pruned", sparsity=0.5)
        print(outcome.num_pruned, ditprune.verify("pruned"))
        pipe = diffusers.DiTPipeline.from_pretrained("pruned")

    `out` appears whole or not at all. A call that was stopped goes on when it is made again.

    Without `stats`, a pipeline is sampled and calibrated with the defaults. The calls and the
    statistics stay beside `out` and serve the next call; the logger `ditprune` says so.

    Args:
        model: a pipeline's folder, a denoiser's folder, a hub id, or `bundled`.
        out: the new folder, a mirror of the model's.
        stats: from `calibrate`, or their file. Those of a pipeline serve one of its denoisers.
        sparsity: share of each comparison group to remove; 0.5 by default.
        batches: calls, or their folder, where a recipe updates weights or measures errors.
        device, dtype: where and in which dtype a pipeline is sampled and the denoiser runs while
            weights are updated or errors measured; the CPU and float32 by default. What is
            written keeps the dtype that it has.
        max_memory: in bytes or as `"8GB"`; a larger denoiser is streamed, to be sampled and by
            recipes that update weights block by block. Other recipes that update weights or measure
            errors load it whole, and are refused if it is larger.
        gram_memory: memory for Grams; by default 4 GB, or what is left of `max_memory`.
        overwrite: replace an `out` that ditprune wrote.
        progress, recipe, words: as for `prune_`.

    Returns:
        What was done to each target.

    Raises:
        DitpruneError: before any work where it can be known, else with `out` as it was.
    """
    ready = check_prune(
        model, out, stats, sparsity, batches=batches, device=device, dtype=dtype,
        max_memory=max_memory, gram_memory=gram_memory, overwrite=overwrite, recipe=recipe, **words,
    )  # fmt: skip
    with telling(progress) as tell:
        joined: Outcome = Outcome.joined(carry_out(ready, tell))
    return joined


def carry_out(ready: Ready, progress: Progress, worker: Worker | None = None) -> dict[str, Outcome]:
    """What each denoiser became.

    Args:
        worker: one of several processes that share the work; only the first gets outcomes.
    """
    stats, batches, worker = ready.stats, ready.batches, worker or Worker()
    if ready.samples_first:
        stats, batches = sampled_beside(ready, batches, progress, worker)
    with _source(batches, ready) as source:
        return prune_checkpoint(
            ready.model, ready.out, stats, ready.recipes, ready.overwrite, progress, source, worker
        )


@dataclass(frozen=True)
class Ready:
    """What `prune` was asked to do, checked as far as that needs no weights.

    Args:
        stats: by denoiser.
        samples_first: whether the pipeline is sampled, as statistics or calls were not given.
    """

    model: ModelFolder
    out: Path
    recipes: Mapping[str, Recipe]
    stats: Mapping[str, Statistics] | None
    batches: Any
    placement: Placement
    max_gram_bytes: int | None
    overwrite: bool
    samples_first: bool


def check_prune(
    model: str | Path, out: str | Path, stats: Statistics | str | Path | None = None,
    sparsity: float | Mapping[str, float] | None = None, *, batches: Any = None,
    device: str | None = None, dtype: str | torch.dtype | None = None,
    max_memory: str | int | None = None, gram_memory: str | int | None = None,
    overwrite: bool = False, recipe: Recipes = None, **words: Any,
) -> Ready:  # fmt: skip
    """The checks of `prune`, with its arguments. Raises DitpruneError."""
    check_before(path_of(out), yes_or_no("overwrite", overwrite), model)
    placement = Placement.of(device, dtype, max_memory)
    folder = located(model)
    recipes = build_each(folder.denoisers, recipe, sparsity=sparsity, **words)
    all_stats = read_statistics(stats)
    most = parse_size(gram_memory, "--gram-memory")
    if most is not None:
        check_needs_grams(recipes.values(), "--gram-memory")
    needs_calls = any(part.needs_calls for part in recipes.values())
    lacks_stats = not all(can_score(part, all_stats) for part in recipes.values())
    lacks_calls = batches is None and needs_calls
    samples_first = folder.is_pipeline and (lacks_stats or (lacks_calls and all_stats is None))
    places = {"--device": device, "--dtype": dtype, "--max-memory": max_memory}
    for option, value in {"--calibration-set": batches, **places}.items():
        if value is not None and not (option in places and samples_first):
            check_needs_calls(recipes.values(), option)
    if needs_calls and max_memory is not None:
        most = gram_bytes_within(open_jobs(folder, None, recipes), placement, most)
    return Ready(
        folder, path_of(out), recipes, all_stats, batches, placement, most, overwrite,
        samples_first,
    )  # fmt: skip


def sampled_beside(
    ready: Ready, batches: Any, progress: Progress, worker: Worker | None = None
) -> tuple[dict[str, Statistics], Any]:
    """Statistics and calls with the defaults, kept beside `out`; calls that were given serve too.

    Returns the statistics, and the calls if a recipe needs them.
    """
    model, stem, beside = ready.model, ready.model.root.resolve().name, ready.out.parent
    file, folder = beside / f"{stem}.statistics.safetensors", beside / f"{stem}.calls"
    check_early(ready.out, model.root, ready.overwrite)
    # What no statistics can mend, such as a glob without targets, is refused before long work.
    open_jobs(model, None, ready.recipes)
    needs_calls = any(recipe.needs_calls for recipe in ready.recipes.values())
    if isinstance(batches, (str, Path)):
        folder = path_of(batches)
    if file.is_file():
        if needs_calls and batches is None and not folder.is_dir():
            raise RecipeError(
                f"{folder}: no such calibration set, and {file} was made with it; remove the file "
                "to sample again, or pass --calibration-set"
            )
        if batches is None:
            _check_dtype(ready.placement, file, folder)
        _log.info("no statistics given: using %s, which was made before", file)
        if not needs_calls and ready.placement != Placement():
            _log.info("nothing is sampled, so --device, --dtype and --max-memory change nothing")
    else:
        _log.info(
            "no statistics given: sampling %s with the defaults, and keeping %s and %s",
            model.name, folder, file,
        )  # fmt: skip
        blocks = {name: recipe.blocks for name, recipe in ready.recipes.items()}
        ensure_folder(beside)
        calibrate_folder(
            model,
            file,
            Sampling(),
            ready.placement,
            folder,
            worker,
            progress=progress,
            blocks=blocks,
        )
    return read_statistics_file(file), folder if needs_calls and batches is None else batches


def _check_dtype(placement: Placement, file: Path, folder: Path) -> None:
    """Refuse statistics whose calls were sampled in another dtype. Raises RecipeError."""
    if not folder.is_dir():
        return
    place: Any = load_calibration_set(folder).identity.get("placement")
    before, asked = (place or {}).get("dtype"), str(placement.dtype).removeprefix("torch.")
    if before not in (None, asked):
        raise RecipeError(
            f"{file}: made in {before}, and --dtype is {asked}; pass --dtype {before}, name the "
            "file with --statistics, or remove both it and its calls to sample again"
        )


@contextmanager
def _source(batches: Any, ready: Ready) -> Iterator[Source | None]:
    """The calls of a recipe that needs them, on disk as long as the block runs."""
    if batches is None:
        yield None
    elif isinstance(batches, (str, Path)):
        yield source_of(load_calibration_set(path_of(batches)), ready)
    elif isinstance(batches, Calls) and isinstance(batches.source, CalibrationSet):
        yield source_of(batches.source, ready, batches.component)
    else:
        with TemporaryDirectory() as temporary:
            yield source_of(_stored(batches, ready.model, Path(temporary) / "calls"), ready)


def source_of(calls: CalibrationSet, ready: Ready, component: str | None = None) -> Source:
    """The calls for `prune`. Raises ModelError where it is not known which are of a denoiser."""
    component = component or component_alone(calls, ready.model)
    limit = ready.placement.max_memory
    whole = replace(ready.placement, max_memory=None)  # that it fits was checked
    return Source(calls, whole, ready.max_gram_bytes, component, limit)


def _stored(batches: Any, model: ModelFolder, folder: Path) -> CalibrationSet:
    """Calls from memory as a calibration set."""
    given = read_batches(batches, model.denoisers, not model.is_pipeline)
    calls = [replace(Call.of(b), denoiser=name) for name in given for b in given[name] or ()]
    Calls(calls, getattr(batches, "protocol", {})).save(folder)
    return load_calls(folder).source  # type: ignore[return-value]
