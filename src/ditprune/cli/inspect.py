"""ditprune inspect: the plan."""

from __future__ import annotations

import json
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from ditprune.api.given import read_statistics
from ditprune.checkpoints.locate import locate
from ditprune.cli.groups import GroupedCommand
from ditprune.cli.options import statistics_option
from ditprune.cli.plans import show_findings, show_forecast, show_plans
from ditprune.cli.recipe_options import read_recipe, recipe_options
from ditprune.method.words import build_each
from ditprune.pruning.forecast import forecast_run
from ditprune.pruning.job import open_jobs, plan_jobs
from ditprune.pruning.plan import Plan


@click.command(cls=GroupedCommand)
@click.argument("model")
@statistics_option
@recipe_options
@click.option("--json", "as_json", is_flag=True, help="machine-readable, everything")
def inspect(model: str, statistics: Path | None, as_json: bool, **texts: Any) -> None:
    """Show what would be pruned, and in which groups; changes nothing."""
    words = read_recipe(**texts)
    folder, stats = locate(model), read_statistics(statistics)
    recipes = build_each(folder.denoisers, words.pop("recipe", None), **words)
    jobs = open_jobs(folder, stats, recipes)
    expected = forecast_run(folder, jobs, Path(tempfile.gettempdir()))
    plans = plan_jobs(jobs)
    if as_json:
        content = {name: _as_json(plan) for name, plan in plans.items()}
        one_or_all = next(iter(content.values())) if len(content) == 1 else {"denoisers": content}
        click.echo(json.dumps({**one_or_all, "estimate": asdict(expected)}, indent=1))
    else:
        show_plans(plans)
        show_findings(stats or {})
        show_forecast(expected)


def _as_json(plan: Plan) -> dict[str, object]:
    return {
        "num_targets": len(plan.targets),
        "num_weights": plan.num_weights,
        "num_parameters": plan.num_parameters,
        "model_share_at_50": plan.num_weights / plan.num_parameters / 2,
        "cag_threshold": plan.cag_threshold,
        "skipped": dict(plan.skipped),
        "left_out": {name: asdict(layer) for name, layer in plan.left_out.items()},
        "targets": {
            name: {k: v for k, v in asdict(target).items() if k != "name"}
            for name, target in plan.targets.items()
        },
    }
