"""A `max_error` for a denoiser of a folder: the share before, the error of what was written after.

Both are kept in the journal, so that a run that goes on need not find them again.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from ditprune.checkpoints.weights import Weights
from ditprune.method.recipe import Recipe
from ditprune.progress import Progress
from ditprune.pruning.error_bound import ErrorBound
from ditprune.pruning.update.folder import Loading
from ditprune.pruning.update.judge import Judge, keep_aside
from ditprune.pruning.update.share import Chosen, choose_share
from ditprune.pruning.update.swap import replaced
from ditprune.pruning.update.update import RefinementResult
from ditprune.targets.matrix import as_matrix
from ditprune.writing.staging import Journal

_SHARE, _ERROR, _REFINED = "share", "error", "refined"


def share_in_folder(
    loading: Loading, recipe: Recipe, journal: Journal, progress: Progress
) -> Chosen | None:
    """The share that the recipe's `max_error` allows; None for a recipe without.

    Raises as `choose_share` does, RecipeError for too few rows, and ModelError for calls that the
    denoiser cannot run.
    """
    if recipe.max_error is None:
        return None
    known = _recorded(journal, loading.job.name, _SHARE)
    if known is not None:
        return Chosen.from_json(known, recipe)
    calls, _ = keep_aside(loading.denoiser, loading.calls)
    chosen = choose_share(loading.inputs(calls, progress), recipe)
    _record(journal, loading.job.name, _SHARE, chosen.to_json())
    return chosen


def measure_error(loading: Loading, chosen: Chosen, folder: Path, journal: Journal) -> None:
    """The error with the weights that were written to `folder`, on the rows kept aside."""
    job = loading.job
    if known_error(journal, job.name) is not None:
        return
    denoiser = loading.denoiser
    _, aside = keep_aside(loading.denoiser, loading.calls)
    judge, written = Judge(denoiser, aside), Weights(folder)
    pruned = {name: as_matrix(written.read(f"{name}.weight")) for name in job.selection.targets}
    with replaced(denoiser, pruned):
        error = chosen.measured(judge, denoiser)
    _record(journal, job.name, _ERROR, asdict(error))


def known_error(journal: Journal, denoiser: str) -> ErrorBound | None:
    """What was measured of a denoiser; None before, and for a recipe without a `max_error`."""
    known = _recorded(journal, denoiser, _ERROR)
    return None if known is None else ErrorBound(**known)


def keep_refinement(journal: Journal, denoiser: str, refined: RefinementResult | None) -> None:
    """Keep what became of a refinement for the outcome, also of a run that goes on."""
    if refined is not None and known_refinement(journal, denoiser) is None:
        _record(journal, denoiser, _REFINED, refined.to_json())


def known_refinement(journal: Journal, denoiser: str) -> dict[str, Any] | None:
    """What became of a denoiser's refinement; None before, and without one."""
    return _recorded(journal, denoiser, _REFINED)


def _record(journal: Journal, denoiser: str, what: str, content: dict[str, Any]) -> None:
    journal.append({"denoiser": denoiser, what: content})
    journal.sync()


def _recorded(journal: Journal, denoiser: str, what: str) -> Any:
    """The last record of this kind."""
    records = [r for r in journal.records if r.get("denoiser") == denoiser and what in r]
    return records[-1][what] if records else None
