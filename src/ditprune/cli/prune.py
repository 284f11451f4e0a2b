"""ditprune prune: MODEL and statistics in, a pruned folder out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ditprune.checkpoints.locate import locate
from ditprune.checkpoints.output import check_folder
from ditprune.checkpoints.rewrite import copied_bytes
from ditprune.checkpoints.weights import Weights
from ditprune.cli import console
from ditprune.cli.inspect import show_plan
from ditprune.cli.options import read_recipe, read_statistics, recipe_options, statistics_option
from ditprune.plan import inspect_checkpoint
from ditprune.prune import check_scorable, prune_checkpoint


@click.command()
@click.argument("model")
@click.option("-o", "--out", required=True, type=click.Path(path_type=Path), metavar="OUT")
@statistics_option
@recipe_options
@click.option("--dry-run", is_flag=True, help="show the plan, write nothing")
@click.option("--overwrite", is_flag=True, help="replace an OUT that ditprune wrote")
def prune(
    model: str, out: Path, statistics: Path | None, dry_run: bool, overwrite: bool, **fields: Any
) -> None:
    """Prune MODEL into the folder OUT. The default is the paper's method at 50 %."""
    recipe = read_recipe(**fields)
    stats = read_statistics(statistics)
    check_scorable(recipe, stats)
    folder = locate(model)
    if dry_run:
        check_folder(out, folder.root, copied_bytes(folder, Weights(folder.denoiser)), overwrite)
        show_plan(inspect_checkpoint(folder, stats, recipe))
        return
    with console.progress() as report:
        outcome = prune_checkpoint(folder, out, stats, recipe, overwrite, report)
    for name, reason in outcome.skipped.items():
        console.out.print(f"stays dense: {name} ({reason})", markup=False)
    console.out.print(
        f"removed {outcome.num_pruned:,} of {outcome.num_weights:,} target weights "
        f"({outcome.sparsity:.2%}), {outcome.model_sparsity:.2%} of the whole denoiser\n"
        f"pruned model: {out}",
        markup=False,
    )
