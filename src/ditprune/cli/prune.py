"""ditprune prune: MODEL in, a pruned folder out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ditprune.api import prune_folder
from ditprune.calibration.workers import joined, own_device
from ditprune.checkpoints import hub
from ditprune.cli import console
from ditprune.cli.groups import GroupedCommand
from ditprune.cli.options import placement_options, statistics_option
from ditprune.cli.path_type import PATH
from ditprune.cli.plans import error_lines, show_dry_run
from ditprune.cli.recipe_options import read_recipe, recipe_options
from ditprune.errors import RecipeError
from ditprune.pruning.job import Outcome
from ditprune.pruning.rates import DEFAULT_GPU_RATE, as_gpu_rate


@click.command(cls=GroupedCommand)
@click.argument("model")
@click.option("-o", "--out", required=True, type=PATH, metavar="OUT")
@statistics_option
@recipe_options
@click.option(
    "--calibration-set", "set_folder", type=PATH, metavar="DIR",
    help="calls from ditprune calibrate; for recipes that update weights",
)  # fmt: skip
@placement_options
@click.option(
    "--gram-memory", metavar="SIZE",
    help="[default: 4GB] for Grams; more memory is fewer passes over the calls",
)  # fmt: skip
@click.option("--dry-run", is_flag=True, help="show the plan and what it takes, write nothing")
@click.option(
    "--gpu-rate", type=float, metavar="TFLOPS",
    help=f"[default: {DEFAULT_GPU_RATE:g}] of the GPU for which --dry-run says times",
)  # fmt: skip
@click.option("--overwrite", is_flag=True, help="replace an OUT that ditprune wrote")
@click.option("--push-to-hub", "repo", metavar="REPO", help="then put OUT there, as `push` does")
def prune(
    model: str, out: Path, statistics: Path | None, set_folder: Path | None, device: str | None,
    dtype: str | None, max_memory: str | None, gram_memory: str | None, dry_run: bool,
    gpu_rate: float | None, overwrite: bool, repo: str | None, **texts: Any,
) -> None:  # fmt: skip
    """Prune MODEL into the folder OUT. The default is the paper's method at 50 %.

    Without --statistics a pipeline is sampled and calibrated first, with the defaults. Its calls
    and statistics stay beside OUT and serve the next command.

    --device, --dtype and --max-memory say where the denoiser runs: to be sampled, and for recipes
    that update weights or measure errors. Those read it block by block where it allows it, and
    under `torchrun` the processes share the blocks. Others run nothing and stream it.
    """
    words, rate = read_recipe(**texts), as_gpu_rate(gpu_rate)
    if gpu_rate is not None and not dry_run:
        raise RecipeError("--gpu-rate: only --dry-run tells times; add it, or leave the rate out")
    if repo is not None:
        hub.check_repo(repo)
    given: dict[str, Any] = {
        "stats": statistics, "batches": set_folder, "dtype": dtype,
        "device": device and own_device(device), "max_memory": max_memory,
        "gram_memory": gram_memory, "overwrite": overwrite, **words,
    }  # fmt: skip
    with joined() as worker:
        ready = prune_folder.check_prune(model, out, **given)
        if dry_run:
            if worker.is_first:
                show_dry_run(ready, out, rate)
            return
        with console.progress() as progress, console.promise(out):
            outcomes = prune_folder.carry_out(ready, progress, worker)
    if worker.is_first:
        _show(out, Outcome.joined(outcomes), repo)


def _show(out: Path, outcome: Outcome, repo: str | None) -> None:
    """Say what was done, and put it onto the hub where that was asked for."""
    console.is_done(out)
    for name, part in outcome.denoisers.items():
        prefix = console.prefix(name, outcome.denoisers)
        console.show(part.told(), prefix)
        line = (
            f"removed {part.num_pruned:,} of {part.num_weights:,} target weights "
            f"({part.sparsity:.2%}), {part.model_sparsity:.2%} of the whole denoiser"
        )
        console.show([line], prefix)
        console.show(error_lines(part), prefix)
    console.show([f"pruned model: {out}"])
    if repo is not None:
        console.show([f"pushed: {hub.push_folder(out, repo)}"])
