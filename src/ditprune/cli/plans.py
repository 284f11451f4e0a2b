"""How a plan, what it will take and what stays dense are printed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path

from rich.table import Table

from ditprune.api.prune_folder import Ready, source_of
from ditprune.checkpoints.calibration_set import load_calibration_set
from ditprune.checkpoints.statistics_file import Statistics, findings
from ditprune.cli import console
from ditprune.cli.forecasts import show_update_forecast
from ditprune.pruning.forecast import RunForecast, forecast_run
from ditprune.pruning.job import Outcome, open_jobs, plan_jobs
from ditprune.pruning.plan import Plan
from ditprune.pruning.scoring import check_scorable
from ditprune.pruning.update.folder import check_source, room_bytes
from ditprune.reporting import formats, told
from ditprune.writing.files import check_folder, existing_parent
from ditprune.writing.staging import missing_bytes


def show_findings(stats: Mapping[str, Statistics]) -> None:
    """What calibration noticed."""
    for name, denoiser_stats in stats.items():
        for line in findings(denoiser_stats):
            console.show([line], console.prefix(name, stats))


def show_forecast(expected: RunForecast) -> None:
    """The bytes, time and memory that pruning will take."""
    console.show(
        [f"pruning it writes {expected.num_bytes:,} bytes and takes about "
         f"{formats.duration(expected.seconds)} here, with {formats.size(expected.peak_bytes)} of "
         "memory at most"]
    )  # fmt: skip


def show_dry_run(ready: Ready, out: Path, gpu_rate: float) -> None:
    """The plan of `prune`, and what it takes; every check is made and nothing is written.

    Args:
        gpu_rate: of a GPU, in TFLOP/s, for which times are told too.
    """
    model, recipes = ready.model, ready.recipes
    source = None
    if ready.batches is not None:
        source = source_of(load_calibration_set(ready.batches), ready)
    if not ready.samples_first:
        for recipe in recipes.values():
            check_scorable(recipe, ready.stats)
        check_source(model, recipes, source)
    jobs = open_jobs(model, ready.stats, recipes)
    size_bytes = missing_bytes(out, room_bytes(model, jobs))
    check_folder(out, model.root, size_bytes, ready.overwrite)
    expected = forecast_run(model, jobs, existing_parent(out.resolve()))
    show_plans(plan_jobs(jobs))
    show_forecast(expected)
    if ready.samples_first:
        console.show(
            ["before that it samples and calibrates the pipeline with the defaults; "
             "`ditprune calibrate MODEL -o FILE --dry-run` says what that takes"]
        )  # fmt: skip
    if source is not None:
        for job in jobs:
            show_update_forecast(model, job, source, console.prefix(job.name, jobs), gpu_rate)


def show_plans(plans: Mapping[str, Plan]) -> None:
    """Every target of every denoiser in a table, then the sums."""
    for name, plan in plans.items():
        _show_plan(plan, console.prefix(name, plans))


def _show_plan(plan: Plan, prefix: str) -> None:
    table = Table("target", "out", "in", "role", "group", "G_out", box=None, pad_edge=False)
    table.columns[0].no_wrap = True
    for column in (1, 2, 5):
        table.columns[column].justify = "right"
    for name, target in plan.targets.items():
        num_out, num_in = target.shape
        g_out = "–" if target.g_out is None else f"{target.g_out:.3g}"
        table.add_row(
            f"{prefix}{name}",
            str(num_out),
            str(num_in),
            target.role,
            target.granularity or "by G_out",
            g_out,
        )
    console.show_table(table)
    console.show(dense_lines(plan), prefix)
    console.show(error_lines(plan), prefix)
    share = plan.num_weights / plan.num_parameters
    sums = [
        f"{len(plan.targets)} targets, {plan.num_weights:,} of {plan.num_parameters:,} "
        f"parameters ({share:.1%}); 50 % of the targets is {share / 2:.1%} of the whole model"
    ]
    if plan.cag_threshold is not None:
        sums.append(f"CAG: per channel from G_out {plan.cag_threshold:.3g}, else per layer")
    elif any(target.granularity is None for target in plan.targets.values()):
        sums.append("CAG chooses the group by G_out: pass --statistics to see it")
    console.show([""])
    console.show(sums, prefix)


def error_lines(done: Plan | Outcome) -> Iterator[str]:
    """What a `max_error` led to, or will decide, a line each; none where there is none."""
    if done.recipe.max_error is not None:
        yield (
            f"share: found when pruning, the largest whose expected error stays below "
            f"{done.recipe.max_error:.3g}"
        )
    if isinstance(done, Outcome) and done.error is not None:
        yield (
            f"share: {done.recipe.sparsity:.0%} of each group is the largest whose expected error "
            "stays below what was asked for"
        )
        yield done.error.line()


def dense_lines(plan: Plan) -> Iterator[str]:
    """What stays dense in the blocks, a line each."""
    left_out = {name: asdict(layer) for name, layer in plan.left_out.items()}
    return told.dense_lines(plan.skipped, left_out, plan.num_parameters)
