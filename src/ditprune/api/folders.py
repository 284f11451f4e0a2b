"""What is done to a model on disk? Every function takes a folder, a hub id, or `bundled`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ditprune.api.given import located, read_statistics, yes_or_no
from ditprune.api.memory import Recipes, inspect_loaded
from ditprune.checkpoints.statistics_file import Statistics
from ditprune.method.choices import check_name
from ditprune.method.words import build_each
from ditprune.pruning.convert import Converted, to_compact, to_dense
from ditprune.pruning.job import open_jobs, plan_jobs
from ditprune.pruning.mask_transfer import extract_masks
from ditprune.pruning.plan import Plan
from ditprune.pruning.verify import false_claims
from ditprune.reporting.bars import ProgressArgument, telling
from ditprune.reporting.page import write_report
from ditprune.writing.files import check_file
from ditprune.writing.paths import path_of
from ditprune.writing.staging import check_before

_CONVERSIONS = {"compact": to_compact, "dense": to_dense}


def inspect(
    model: Any, stats: Statistics | str | Path | None = None, *, recipe: Recipes = None,
    **words: Any,
) -> Plan:  # fmt: skip
    """What `prune_` or `prune` with the same recipe or words would do; nothing is changed.

        plan = ditprune.inspect(pipe, stats, sparsity=0.7)
        print(plan.num_weights, plan.num_parameters)
        print(plan.denoisers["transformer"].targets.keys())

    Args:
        model: a pipeline or a denoiser in memory, or a model folder, a hub id or `bundled`.
        stats: from `calibrate`, or their file; without them G_out is not known.
        recipe, words: as for `prune_`.

    Raises ModelError, RecipeError, TargetError, StatisticsError.
    """
    if not isinstance(model, (str, Path)):
        return inspect_loaded(model, stats, recipe=recipe, **words)
    folder = located(model)
    recipes = build_each(folder.denoisers, recipe, **words)
    joined: Plan = Plan.joined(plan_jobs(open_jobs(folder, read_statistics(stats), recipes)))
    return joined


def report(folder: str | Path, out: str | Path | None = None) -> Path:
    """Make one HTML page of the results that `evaluate` wrote, without network or models.

        results = ditprune.evaluate("bundled", ["pruned"], "eval", num_images=4, num_held_out=8)
        page = ditprune.report("eval")
        print(page)

    Args:
        folder: with results.json, or that file.
        out: the page; `report.html` in the folder by default. A page that is there is replaced.

    Returns the page's path. Raises ResultsError, OutputError.
    """
    return write_report(path_of(folder), None if out is None else path_of(out))


def verify(out: str | Path) -> list[str]:
    """Read a pruned folder back from disk: one line for each false claim of its manifest.

        outcome = ditprune.prune("bundled", "pruned", saliency="magnitude")
        failures = ditprune.verify("pruned")
        assert failures == []

    Raises ModelError where there is no manifest at all.
    """
    return list(false_claims(located(out)))


def extract_mask(
    out: str | Path, file: str | Path, *, overwrite: bool = False,
    progress: ProgressArgument = None,
) -> tuple[int, int]:  # fmt: skip
    """Write the masks of a pruned folder, one bit for each weight of a target.

        num_weights, size_bytes = ditprune.extract_mask("pruned", "mask.safetensors")
        ditprune.apply_mask_(pipe, "mask.safetensors")
        print(size_bytes)

    Returns:
        The number of weights under the masks, and the size of the file in bytes.

    Raises:
        ModelError: there is no manifest, or it does not describe these weights.
        OutputError: `file` cannot be written.
    """
    check_file(path_of(file), yes_or_no("overwrite", overwrite))
    with telling(progress) as tell:
        return extract_masks(located(out), path_of(file), overwrite, tell)


def convert(
    model: str | Path, out: str | Path, *, to: str, overwrite: bool = False,
    progress: ProgressArgument = None,
) -> dict[str, Converted]:  # fmt: skip
    """Pack the sparse weights of a folder into a smaller one, or unpack them; no bit is lost.

        sizes = ditprune.convert("pruned", "small", to="compact")
        print(sizes["transformer"].size_bytes / sizes["transformer"].dense_bytes)
        ditprune.convert("small", "again", to="dense")

    Args:
        to: `compact` or `dense`.

    Returns:
        The sizes of each denoiser before and after.

    Raises RecipeError, ModelError, OutputError.
    """
    check_name("to", _CONVERSIONS, to)
    check_before(path_of(out), yes_or_no("overwrite", overwrite), model)
    with telling(progress) as tell:
        return _CONVERSIONS[to](located(model), path_of(out), overwrite, tell)
