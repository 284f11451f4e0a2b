"""ditprune convert: pack a pruned folder into a smaller one, and unpack it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click

from ditprune.api.folders import convert as convert_folder
from ditprune.cli import console
from ditprune.cli.groups import GroupedCommand
from ditprune.cli.path_type import PATH
from ditprune.pruning.convert import Converted
from ditprune.reporting import formats

_MOST_LINES = 8


@click.command(cls=GroupedCommand)
@click.argument("model")
@click.option("--to", type=click.Choice(["compact", "dense"]), required=True)
@click.option("-o", "--out", required=True, type=PATH, metavar="OUT")
@click.option("--overwrite", is_flag=True, help="replace an OUT that ditprune wrote")
def convert(model: str, to: str, out: Path, overwrite: bool) -> None:
    """Pack the sparse weights of MODEL into the folder OUT, or unpack them; no bit is lost.

    diffusers loads a compact folder as dense weights once ditprune is imported.
    """
    with console.progress() as progress, console.promise(out):
        converted = convert_folder(model, out, to=to, overwrite=overwrite, progress=progress)
    console.is_done(out)
    for name, denoiser in converted.items():
        console.show(_lines(denoiser, to), console.prefix(name, converted))
    console.show([f"{to} model: {out}"])


def _lines(converted: Converted, to: str) -> Iterator[str]:
    packed = converted.packed
    dense = [name for name in converted.heads if name not in packed]
    for name in dense[:_MOST_LINES]:
        head = converted.heads[name]
        yield (
            f"stays dense: {name} (not sparse enough; packed it would take "
            f"{head.size_bytes / head.dense_bytes:.3f} of its bytes)"
        )
    if len(dense) > _MOST_LINES:
        yield f"… and {len(dense) - _MOST_LINES} more"
    before, after = converted.unpacked_bytes, converted.packed_bytes
    if packed:
        yield (
            f"packed {len(packed)} of {len(converted.heads)} targets: "
            f"{formats.size(before)} → {formats.size(after)} ({after / before:.3f})"
        )
    sizes = [formats.size(converted.dense_bytes), formats.size(converted.size_bytes)]
    yield "weights: " + " → ".join(sizes if to == "compact" else reversed(sizes))
