"""ditprune mask: write the mask of a pruned folder to a file, and apply it to another model."""

from __future__ import annotations

from pathlib import Path

import click

from ditprune.api.folders import extract_mask
from ditprune.checkpoints.locate import ModelFolder, locate
from ditprune.checkpoints.mask_file import MaskFile
from ditprune.cli import console
from ditprune.cli.groups import GroupedCommand
from ditprune.cli.path_type import PATH
from ditprune.errors import RecipeError
from ditprune.pruning.mask_transfer import apply_masks, filled_in
from ditprune.reporting import formats
from ditprune.writing.staging import check_before


@click.group()
def mask() -> None:
    """Take the mask of a pruned folder, and apply it to a fine-tune or a fused LoRA."""


@mask.command(cls=GroupedCommand)
@click.argument("model")
@click.option("-o", "--out", required=True, type=PATH, metavar="FILE")
@click.option("--overwrite", is_flag=True, help="replace FILE if it exists")
def extract(model: str, out: Path, overwrite: bool) -> None:
    """Write the mask of the pruned folder MODEL to FILE, at most one bit for each weight."""
    with console.progress() as progress:
        num_weights, size_bytes = extract_mask(model, out, overwrite=overwrite, progress=progress)
    console.is_done(out)
    size = f"{formats.size(size_bytes)}, {8 * size_bytes / num_weights:.3f} bits a weight"
    console.show([f"mask of {num_weights:,} weights: {out} ({size})"])


@mask.command(cls=GroupedCommand)
@click.argument("model")
@click.argument("file", type=PATH)
@click.option("-o", "--out", type=PATH, metavar="OUT")
@click.option("--check", is_flag=True, help="only report what is not zero; exit 1 if anything is")
@click.option("--overwrite", is_flag=True, help="replace an OUT that ditprune wrote")
def apply(model: str, file: Path, out: Path | None, check: bool, overwrite: bool) -> int:
    """Write MODEL into the folder OUT with zeros where the mask FILE has them."""
    if check and (out is not None or overwrite):
        raise RecipeError("--check: writes nothing; leave --out and --overwrite out")
    if not check and out is None:
        raise RecipeError(
            "mask apply: nowhere to write to; pass -o OUT, or --check to only compare"
        )
    if out is not None:
        check_before(out, overwrite, model)
    folder, masks = locate(model), MaskFile(file)
    if out is None:
        return _check(folder, masks)
    with console.progress() as progress, console.promise(out):
        outcomes = apply_masks(folder, masks, out, overwrite, progress)
    console.is_done(out)
    for name, outcome in outcomes.items():
        num_zero = sum(target.num_zero for target in outcome.targets.values())
        line = (
            f"{num_zero:,} of {outcome.num_weights:,} weights of {len(outcome.targets)} targets "
            "are zeros"
        )
        console.show([line], console.prefix(name, outcomes))
    console.show([f"pruned model: {out}"])
    return 0


def _check(folder: ModelFolder, masks: MaskFile) -> int:
    """Print one line for each target; returns 1 if any zero of the mask is filled in."""
    with console.progress() as progress:
        targets_of = filled_in(folder, masks, progress)
    num_filled = num_zero = 0
    for name, targets in targets_of.items():
        num_filled += sum(zeros.num_filled for zeros in targets.values())
        num_zero += sum(zeros.num_zero for zeros in targets.values())
        lines = (
            f"{target}: {zeros.num_filled:,} of {zeros.num_zero:,} zeros filled in "
            f"({zeros.share:.2%})"
            for target, zeros in targets.items()
        )
        console.show(lines, console.prefix(name, targets_of))
    console.show([f"{folder.name}: {num_filled:,} of {num_zero:,} zeros of the mask are filled in"])
    return 1 if num_filled else 0
