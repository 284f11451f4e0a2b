"""ditprune demo: how do the paper's methods compare on the bundled model? Ends in a picture."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ditprune.cli import console
from ditprune.cli.groups import GroupedCommand
from ditprune.cli.options import PATH
from ditprune.reproduce.studies import STUDIES

if TYPE_CHECKING:
    from ditprune.method.recipe import Recipe

STATISTICS = "statistics.safetensors"
METHODS = {method.name: method.words for method in STUDIES["main"].methods}
NUM_INFERENCE_STEPS, GUIDANCE_SCALE = 25, 1.5


@click.command(cls=GroupedCommand)
@click.option("-o", "--out", type=PATH, default=Path("demo"), show_default=True)
@click.option("--num-images", type=int, default=250, show_default=True)
@click.option("--sparsity", type=float, default=0.5, show_default=True)
@click.option("--seed", type=int, default=0, show_default=True)
def demo(out: Path, num_images: int, sparsity: float, seed: int) -> None:
    """Prune the bundled DiT with magnitude, Wanda and DiT-Pruning, and compare."""
    from ditprune.checkpoints.locate import locate
    from ditprune.cli.evaluate import own_command, show_results, write_cards
    from ditprune.evaluation.evaluate import evaluate
    from ditprune.evaluation.protocol import Protocol
    from ditprune.method.words import build
    from ditprune.writing.files import ensure_folder

    recipes = {name: build(sparsity=sparsity, **words) for name, words in METHODS.items()}
    Protocol(num_images, seed)  # refuses before work
    ensure_folder(out)
    _calibrate_and_prune(out, recipes, sparsity, seed)
    console.say("3/3 draw the same seeds with every model, and measure")
    with console.progress() as progress:
        results = evaluate(
            "bundled", {name: out / name for name in recipes}, out, progress=progress,
            command=own_command(), num_images=num_images, seed=seed,
            num_inference_steps=NUM_INFERENCE_STEPS, guidance_scale=GUIDANCE_SCALE,
        )  # fmt: skip
    show_results(results)
    write_cards([(name, locate(str(out / name))) for name in recipes], results)
    console.show([
        "",
        f"picture:       {out / 'grid.png'}",
        f"numbers:       {out / 'results.json'}",
        f"pruned models: {', '.join(str(out / name) for name in recipes)}",
        f"statistics:    {out / STATISTICS}",
    ])  # fmt: skip


def _calibrate_and_prune(
    out: Path, recipes: Mapping[str, Recipe], sparsity: float, seed: int
) -> None:
    """Write the statistics and a pruned folder for each recipe."""
    from ditprune.calibration.collect import calibrate_folder
    from ditprune.calibration.sample import Sampling
    from ditprune.checkpoints.locate import locate
    from ditprune.checkpoints.statistics_file import read_statistics_file
    from ditprune.pruning.loop import prune_checkpoint

    model, statistics = locate("bundled"), out / STATISTICS
    console.say(f"1/3 calibrate the bundled DiT → {statistics}")
    sampling = Sampling(
        num_inference_steps=NUM_INFERENCE_STEPS, guidance_scale=GUIDANCE_SCALE, seed=seed
    )
    with console.progress() as progress:
        calibrate_folder(model, statistics, sampling, progress=progress)
    stats = read_statistics_file(statistics)
    console.say(f"2/3 prune it at {sparsity:.0%} with {', '.join(recipes)}")
    for name, recipe in recipes.items():
        prune_checkpoint(model, out / name, stats, recipe, overwrite=True)
