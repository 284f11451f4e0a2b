"""ditprune mask: the zeros of a pruned folder as a small file, and onto another model."""

from __future__ import annotations

from pathlib import Path

import click

from ditprune.checkpoints.locate import ModelFolder, locate
from ditprune.checkpoints.mask_file import MaskFile
from ditprune.cli import console
from ditprune.errors import RecipeError
from ditprune.pruning import mask_transfer as masking
from ditprune.pruning.mask_transfer import extract as extract_masks
from ditprune.reporting import numbers


@click.group()
def mask() -> None:
    """Take the mask of a pruned folder, and put it onto a fine-tune or a fused LoRA."""


@mask.command()
@click.argument("model")
@click.option("-o", "--out", required=True, type=click.Path(path_type=Path), metavar="FILE")
@click.option("--overwrite", is_flag=True, help="replace a FILE that is there")
def extract(model: str, out: Path, overwrite: bool) -> None:
    """Write which weights of the pruned folder MODEL are zeros, at most one bit a weight."""
    folder = locate(model)
    with console.progress() as progress:
        num_weights, size_bytes = extract_masks(folder, out, overwrite, progress)
    console.out.print(
        f"mask of {num_weights:,} weights: {out} ({numbers.size(size_bytes)}, "
        f"{8 * size_bytes / num_weights:.3f} bits a weight)",
        markup=False,
    )


@mask.command()
@click.argument("model")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("-o", "--out", type=click.Path(path_type=Path), metavar="OUT")
@click.option("--check", is_flag=True, help="only report what is not zero; exit 1 if anything is")
@click.option("--overwrite", is_flag=True, help="replace an OUT that ditprune wrote")
def apply(model: str, file: Path, out: Path | None, check: bool, overwrite: bool) -> int:
    """Write MODEL into the folder OUT with zeros where the mask FILE has them."""
    if check and (out is not None or overwrite):
        raise RecipeError("--check: writes nothing; leave --out and --overwrite out")
    if not check and out is None:
        raise RecipeError("mask apply: no place to write to; pass -o OUT, or --check to look only")
    folder, masks = locate(model), MaskFile(file)
    if out is None:
        return _check(folder, masks)
    with console.progress() as progress, console.promise(out):
        outcomes = masking.apply(folder, masks, out, overwrite, progress)
    for name, outcome in outcomes.items():
        num_zero = sum(target.num_zero for target in outcome.targets.values())
        console.out.print(
            f"{console.prefix(name, outcomes)}{num_zero:,} of {outcome.num_weights:,} weights of "
            f"{len(outcome.targets)} targets are zeros",
            markup=False,
        )
    console.out.print(f"pruned model: {out}", markup=False)
    return 0


def _check(folder: ModelFolder, masks: MaskFile) -> int:
    """One line for every target; 1 where one was filled in."""
    with console.progress() as progress:
        found = masking.filled_in(folder, masks, progress)
    for name, targets in found.items():
        prefix = console.prefix(name, found)
        for target, one in targets.items():
            console.out.print(
                f"{prefix}{target}: {one.num_filled:,} of {one.num_zero:,} zeros filled in "
                f"({one.share:.2%})",
                markup=False,
            )
    every = [one for targets in found.values() for one in targets.values()]
    num_filled, num_zero = (sum(getattr(one, key) for one in every)
                            for key in ("num_filled", "num_zero"))  # fmt: skip
    console.out.print(
        f"{folder.name}: {num_filled:,} of {num_zero:,} zeros of the mask are filled in",
        markup=False,
    )
    return 1 if num_filled else 0
