"""ditprune prune: MODEL and statistics in, a pruned folder out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ditprune.checkpoints import hub
from ditprune.checkpoints.calibration_set import load_calibration_set
from ditprune.checkpoints.locate import locate
from ditprune.cli import console
from ditprune.cli.options import read_recipe, read_statistics, recipe_options, statistics_option
from ditprune.cli.plans import show_forecast, show_plans, show_update_forecast
from ditprune.denoiser.placement import Placement, parse_size
from ditprune.method.recipe import Recipe
from ditprune.pruning.forecast import forecast_run
from ditprune.pruning.job import Outcome, dense_lines, num_bytes, open_jobs, plan_jobs
from ditprune.pruning.loop import check_scorable, prune_checkpoint
from ditprune.pruning.update.folder import Source, check_source
from ditprune.pruning.update.update import check_needs_calls, gram_limit
from ditprune.writing.files import check_folder, existing_parent
from ditprune.writing.staging import missing_bytes


@click.command()
@click.argument("model")
@click.option("-o", "--out", required=True, type=click.Path(path_type=Path), metavar="OUT")
@statistics_option
@recipe_options
@click.option(
    "--calibration-set",
    "set_folder",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="from ditprune calibrate; for recipes that update weights",
)
@click.option("--device", metavar="NAME", help="[default: cpu] where weights are updated")
@click.option(
    "--gram-memory",
    metavar="SIZE",
    help="[default: 4GB] for Grams; more memory is fewer passes over the calls",
)
@click.option("--dry-run", is_flag=True, help="show the plan and what it takes, write nothing")
@click.option("--overwrite", is_flag=True, help="replace an OUT that ditprune wrote")
@click.option("--push-to-hub", "repo", metavar="REPO", help="then put OUT there, as `push` does")
def prune(
    model: str, out: Path, statistics: Path | None, set_folder: Path | None, device: str | None,
    gram_memory: str | None, dry_run: bool, overwrite: bool, repo: str | None, **fields: Any,
) -> None:  # fmt: skip
    """Prune MODEL into the folder OUT. The default is the paper's method at 50 %."""
    recipe = read_recipe(**fields)
    stats = read_statistics(statistics)
    check_scorable(recipe, stats)  # before a model is downloaded
    folder = locate(model)
    source = _source(recipe, set_folder, device, gram_memory)
    if dry_run or repo is not None:  # else prune_checkpoint checks it, first of all
        check_source(folder, recipe, source)
    if repo is not None:
        hub.check_repo(repo)
    if dry_run:
        jobs = open_jobs(folder, stats, recipe)
        size_bytes = missing_bytes(out, num_bytes(folder, jobs))
        check_folder(out, folder.root, size_bytes, overwrite)
        expected = forecast_run(folder, jobs, recipe, existing_parent(out.resolve()))
        show_plans(plan_jobs(jobs, recipe))
        show_forecast(expected)
        if source is not None:
            for job in jobs:
                show_update_forecast(folder, job, recipe, source, console.prefix(job.name, jobs))
        return
    with console.progress() as progress, console.promise(out):
        outcomes = prune_checkpoint(folder, out, stats, recipe, overwrite, progress, source)
    for name, outcome in outcomes.items():
        _show(outcome, console.prefix(name, outcomes))
    console.out.print(f"pruned model: {out}", markup=False)
    if repo is not None:
        console.out.print(f"pushed: {hub.push_folder(out, repo)}", markup=False)


def _source(
    recipe: Recipe, set_folder: Path | None, device: str | None, gram_memory: str | None
) -> Source | None:
    """The calibration calls of a recipe that needs them. Raises RecipeError, ModelError."""
    for option, given in {"calibration-set": set_folder, "device": device}.items():
        if given is not None:
            check_needs_calls(recipe, f"--{option}")
    max_gram_bytes = None
    if gram_memory is not None:
        max_gram_bytes = parse_size(gram_memory, "--gram-memory")
        gram_limit(recipe, max_gram_bytes)
    if set_folder is None:
        return None
    return Source(load_calibration_set(set_folder), Placement.of(device), max_gram_bytes)


def _show(outcome: Outcome, prefix: str) -> None:
    console.show(dense_lines(outcome), prefix)
    console.out.print(
        f"{prefix}removed {outcome.num_pruned:,} of {outcome.num_weights:,} target weights "
        f"({outcome.sparsity:.2%}), {outcome.model_sparsity:.2%} of the whole denoiser",
        markup=False,
    )
