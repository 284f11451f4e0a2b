"""ditprune demo: how do the paper's methods compare on the bundled model? Ends in a picture."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ditprune.cli import console
from ditprune.cli.groups import GroupedCommand
from ditprune.cli.path_type import PATH
from ditprune.errors import ModelError, OutputError
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
    """Prune the bundled DiT with magnitude, Wanda and DiT-Pruning, and compare.

    A demo that is stopped goes on when the same command is given again.
    """
    from ditprune.evaluation.place import check_results_place
    from ditprune.evaluation.protocol import Protocol
    from ditprune.method.words import build
    from ditprune.writing.files import ensure_folder
    from ditprune.writing.lock import locked

    recipes = {name: build(sparsity=sparsity, **words) for name, words in METHODS.items()}
    Protocol(num_images, seed)  # refuses before work
    check_results_place(out)
    ensure_folder(out)
    with locked(out / "demo"):
        _make(out, recipes, num_images, sparsity, seed)


def _make(
    out: Path, recipes: Mapping[str, Recipe], num_images: int, sparsity: float, seed: int
) -> None:
    """All of it; what an earlier run has done is not done again."""
    from ditprune.checkpoints.locate import locate
    from ditprune.cli.evaluate import own_command, show_results, write_cards
    from ditprune.evaluation.evaluate import evaluate

    _calibrate_and_prune(out, recipes, sparsity, seed)
    console.say("3/3 draw the same seeds with every model, and measure")
    with console.progress() as progress:
        results = evaluate(
            "bundled", {name: out / name for name in recipes}, out, progress=progress,
            command=own_command(), num_images=num_images, seed=seed,
            num_inference_steps=NUM_INFERENCE_STEPS, guidance_scale=GUIDANCE_SCALE,
        )  # fmt: skip
    console.is_done(out)
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
    """Write the statistics and a pruned folder for each recipe; what is there already stays."""
    from ditprune.calibration.collect import calibrate_folder
    from ditprune.calibration.sample import Sampling
    from ditprune.checkpoints.locate import locate
    from ditprune.checkpoints.statistics_file import read_statistics_file
    from ditprune.denoiser.components import check_components
    from ditprune.pruning.loop import prune_checkpoint

    model, statistics = locate("bundled"), out / STATISTICS
    console.say(f"1/3 calibrate the bundled DiT → {statistics}")
    sampling = Sampling(
        num_inference_steps=NUM_INFERENCE_STEPS, guidance_scale=GUIDANCE_SCALE, seed=seed
    )
    if not statistics.exists():
        with console.progress() as progress:
            calibrate_folder(model, statistics, sampling, overwrite=True, progress=progress)
    stats = read_statistics_file(statistics)
    protocol = sampling.protocol(*check_components(model))
    if any(part.protocol.get(key) != protocol[key] for part in stats.values() for key in protocol):
        raise _not_of_this_demo(statistics)
    console.say(f"2/3 prune it at {sparsity:.0%} with {', '.join(recipes)}")
    for name, recipe in recipes.items():
        if (out / name).exists():
            _check_made(out / name, recipe)
        else:
            prune_checkpoint(model, out / name, stats, recipe, overwrite=True)


def _check_made(folder: Path, recipe: Recipe) -> None:
    """Refuse a folder that is not the bundled model, pruned by this recipe."""
    from ditprune.checkpoints.copy_folder import sha256_of
    from ditprune.checkpoints.locate import locate
    from ditprune.writing.files import read_manifest

    try:
        claims = read_manifest(locate(str(folder)).denoiser)
    except ModelError:
        raise _not_of_this_demo(folder) from None
    config, base = locate("bundled").denoiser / "config.json", claims.get("base")
    is_bundled = isinstance(base, dict) and base.get("config_sha256") == sha256_of(config)
    if claims.get("recipe") != recipe.to_json() or not is_bundled:
        raise _not_of_this_demo(folder)


def _not_of_this_demo(path: Path) -> OutputError:
    return OutputError(
        f"{path}: is of something else than a demo with these options; choose another folder "
        "with -o"
    )
