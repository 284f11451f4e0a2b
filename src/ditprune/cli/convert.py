"""ditprune convert: a pruned folder made smaller, and back."""

from __future__ import annotations

from pathlib import Path

import click

from ditprune.checkpoints.locate import locate
from ditprune.cli import console
from ditprune.pruning.convert import Converted, to_compact, to_dense
from ditprune.reporting import numbers

_MOST_LINES = 8


@click.command()
@click.argument("model")
@click.option("--to", type=click.Choice(["compact", "dense"]), required=True)
@click.option("-o", "--out", required=True, type=click.Path(path_type=Path), metavar="OUT")
@click.option("--overwrite", is_flag=True, help="replace an OUT that ditprune wrote")
def convert(model: str, to: str, out: Path, overwrite: bool) -> None:
    """Pack the sparse weights of MODEL into the folder OUT, or unpack them; no bit is lost.

    A compact folder loads in diffusers where ditprune is imported, as dense weights.
    """
    folder = locate(model)
    with console.progress() as progress, console.promise(out):
        work = to_compact if to == "compact" else to_dense
        converted = work(folder, out, overwrite, progress)
    for name, one in converted.items():
        _show(one, to, console.prefix(name, converted))
    console.out.print(f"{to} model: {out}", markup=False)


def _show(converted: Converted, to: str, prefix: str) -> None:
    if to == "compact":
        stay = [name for name in converted.heads if name not in converted.packed]
        for name in stay[:_MOST_LINES]:
            head = converted.heads[name]
            console.out.print(
                f"{prefix}stays dense: {name} (not sparse enough; packed it would take "
                f"{head.size_bytes / head.dense_bytes:.3f} of its bytes)",
                markup=False,
            )
        if len(stay) > _MOST_LINES:
            console.out.print(f"{prefix}… and {len(stay) - _MOST_LINES} more", markup=False)
        if converted.packed:
            console.out.print(
                f"{prefix}packed {len(converted.packed)} of {len(converted.heads)} targets: "
                f"{numbers.size(converted.unpacked_bytes)} → "
                f"{numbers.size(converted.packed_bytes)} "
                f"({converted.packed_bytes / converted.unpacked_bytes:.3f})",
                markup=False,
            )
    before, after = converted.dense_bytes, converted.size_bytes
    if to == "dense":
        before, after = after, before
    console.out.print(
        f"{prefix}weights: {numbers.size(before)} → {numbers.size(after)}", markup=False
    )
