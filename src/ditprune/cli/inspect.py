"""ditprune inspect: the plan."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import click
from rich.table import Table

from ditprune.checkpoints.locate import locate
from ditprune.cli import console
from ditprune.cli.options import read_recipe, read_statistics, statistics_option, target_options
from ditprune.method.statistics.collected import Statistics, findings
from ditprune.pruning.forecast import RunForecast, forecast_run
from ditprune.pruning.job import open_jobs, plan_jobs
from ditprune.pruning.outcome import Outcome
from ditprune.pruning.plan import Plan
from ditprune.reporting import numbers
from ditprune.targets.coverage import LeftOut


@click.command()
@click.argument("model")
@statistics_option
@target_options
@click.option("--json", "as_json", is_flag=True, help="machine-readable, everything")
def inspect(
    model: str,
    statistics: Path | None,
    include: tuple[str, ...],
    exclude: tuple[str, ...],
    auxiliary: bool | None,
    as_json: bool,
) -> None:
    """Show what would be pruned, and in which groups; changes nothing."""
    recipe = read_recipe(None, include=include, exclude=exclude, auxiliary=auxiliary)
    folder = locate(model)
    stats = read_statistics(statistics)
    jobs = open_jobs(folder, stats, recipe)
    here = Path.cwd() if os.access(Path.cwd(), os.W_OK) else Path(tempfile.gettempdir())
    expected = forecast_run(folder, jobs, recipe, here)
    plans = plan_jobs(jobs, recipe)
    if as_json:
        content = {name: _as_json(plan) for name, plan in plans.items()}
        one_or_all = next(iter(content.values())) if len(content) == 1 else {"denoisers": content}
        click.echo(json.dumps({**one_or_all, "estimate": asdict(expected)}, indent=1))
    else:
        show_plans(plans)
        show_findings(stats or {})
        show_forecast(expected)


def show_findings(stats: Mapping[str, Statistics]) -> None:
    """What calibration noticed."""
    for name, one in stats.items():
        for line in findings(one):
            console.out.print(f"{console.prefix(name, stats)}{line}", markup=False)


def show_dense(done: Plan | Outcome, prefix: str) -> None:
    """What of the blocks stays dense: the targets that were skipped, the rest by reason."""
    for name, reason in done.skipped.items():
        console.out.print(f"{prefix}stays dense: {name} ({reason})", markup=False)
    by_reason: dict[str, list[LeftOut]] = {}
    for one in done.left_out.values():
        by_reason.setdefault(one.reason, []).append(one)
    for reason, group in by_reason.items():
        num_weights = sum(one.num_weights for one in group)
        more = f" and {len(group) - 1} more" if len(group) > 1 else ""
        console.out.print(
            f"{prefix}stays dense: {group[0].name}{more}, {num_weights:,} weights "
            f"({num_weights / done.num_parameters:.1%} of the denoiser): {reason}",
            markup=False,
        )


def show_forecast(expected: RunForecast) -> None:
    """What pruning it will take."""
    console.out.print(
        f"pruning it writes {expected.num_bytes:,} bytes and takes about "
        f"{numbers.duration(expected.seconds)} here, with {numbers.size(expected.peak_bytes)} of "
        "memory at most"
    )


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
    console.out.print(table)
    show_dense(plan, prefix)
    share = plan.num_weights / plan.num_parameters
    console.out.print(
        f"\n{prefix}{len(plan.targets)} targets, {plan.num_weights:,} of {plan.num_parameters:,} "
        f"parameters ({share:.1%}); 50 % of the targets is {share / 2:.1%} of the whole model"
    )
    if plan.cag_threshold is not None:
        console.out.print(
            f"{prefix}CAG: per channel from G_out {plan.cag_threshold:.3g}, else per layer"
        )
    elif any(target.granularity is None for target in plan.targets.values()):
        console.out.print(f"{prefix}CAG chooses the group by G_out: pass --statistics to see it")


def _as_json(plan: Plan) -> dict[str, object]:
    return {
        "num_targets": len(plan.targets),
        "num_weights": plan.num_weights,
        "num_parameters": plan.num_parameters,
        "model_share_at_50": plan.num_weights / plan.num_parameters / 2,
        "cag_threshold": plan.cag_threshold,
        "skipped": dict(plan.skipped),
        "left_out": {name: asdict(one) for name, one in plan.left_out.items()},
        "targets": {
            name: {k: v for k, v in asdict(target).items() if k != "name"}
            for name, target in plan.targets.items()
        },
    }
