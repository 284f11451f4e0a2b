"""ditprune shrink: MODEL in, a smaller dense folder out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import click

from ditprune.api.shrink import ReadyToShrink, check_no_words, check_shrink
from ditprune.cli import console
from ditprune.cli.globs import blocks_option, read_globs
from ditprune.cli.groups import GroupedCommand, grouped
from ditprune.cli.options import placement_options
from ditprune.cli.path_type import PATH
from ditprune.cli.shrink_tables import show_curve, show_shrunk
from ditprune.shrinking.lora import SUFFIX, ShrunkLora, shrink_lora
from ditprune.shrinking.recipe import DEFAULT_RATIO, PARTS, PRESETS, PRICES, ShrinkRecipe


def _recipe_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Every word of a recipe."""
    options = [
        click.option(
            "--ratio", type=float, metavar="SHARE",
            help=f"[default: {DEFAULT_RATIO:g}] of the price of --parts that goes; 0 takes none",
        ),
        click.option(
            "--fit", metavar="SIZE", help="in place of --ratio: as in 12GB, what the weights take"
        ),
        click.option(
            "--max-error", type=float, metavar="NUMBER",
            help="in place of --ratio: the largest expected error of the predicted noise",
        ),
        click.option(
            "--parts", metavar="NAME,…", help=f"[default: {','.join(PARTS)}] what goes"
        ),
        click.option(
            "--modulation", metavar="auto|none|SHARE",
            help="[default: auto] of the modulation's weights that goes by low rank; no part of "
            "--ratio",
        ),
        click.option(
            "--price", metavar="NAME",
            help=f"[default: {PRICES[0]}] {', '.join(PRICES)}: what --ratio is a share of",
        ),
        click.option(
            "--multiple", metavar="auto|N",
            help="[default: auto] neurons stay in multiples of it; 16 to 128 by width",
        ),
        click.option(
            "--max-shapes", metavar="N|none",
            help="[default: 8] different shapes of blocks, as compilers give up beyond it",
        ),
        click.option(
            "--preset", metavar="NAME",
            help=f"[default: {PRESETS[0]}] {', '.join(PRESETS)}: without training, or with it",
        ),
        click.option(
            "--include", multiple=True, metavar="GLOB",
            help="names of attentions and MLPs to take; repeatable",
        ),
        click.option(
            "--exclude", multiple=True, metavar="GLOB", help="names to leave; repeatable"
        ),
        blocks_option,
    ]  # fmt: skip
    for option in reversed(options):
        command = option(command)
    return grouped(command, "Method", [part.name for part in fields(ShrinkRecipe)])


@click.command(cls=GroupedCommand)
@click.argument("model")
@click.option("-o", "--out", required=True, type=PATH, metavar="OUT")
@_recipe_options
@click.option(
    "--calibration-set", "set_folder", type=PATH, metavar="DIR",
    help="calls from ditprune calibrate [default: sampled, and kept beside OUT]",
)  # fmt: skip
@click.option(
    "--like", type=PATH, metavar="SHRUNK",
    help="cut MODEL, a fine-tune or a LoRA (*.safetensors) of the same base, as that folder was",
)  # fmt: skip
@placement_options
@click.option("--dry-run", is_flag=True, help="show what each ratio would cost, write no OUT")
@click.option("--overwrite", is_flag=True, help="replace an OUT that ditprune wrote")
def shrink(
    model: str, out: Path, set_folder: Path | None, like: Path | None, device: str | None,
    dtype: str | None, max_memory: str | None, dry_run: bool, overwrite: bool, **texts: Any,
) -> None:  # fmt: skip
    """Shrink MODEL into the folder OUT: whole heads and neurons go, a dense model stays.

    What goes is chosen so that the predicted noise changes least; what reads it makes up for it.
    The rank of the modulation is lowered besides. OUT loads in diffusers after `import ditprune`.

    Without --calibration-set a pipeline is sampled first, with the defaults. The calls stay beside
    OUT and serve the next command; a command that was stopped goes on when it is given again.

    With --like a fine-tune loses what its base lost in that folder; a LoRA of the base is cut so
    that it fits the folder's model.
    """
    words = read_words(texts)
    if like is not None and model.endswith(SUFFIX):
        given = {"calibration-set": set_folder, "device": device, "dtype": dtype}
        check_no_words({**words, **given, "max-memory": max_memory, "dry-run": dry_run or None})
        _show_lora(shrink_lora(Path(model), out, like, overwrite), out)
        return
    ready = check_shrink(
        model, out, set_folder, device=device, dtype=dtype, max_memory=max_memory,
        overwrite=overwrite, like=like, **words,
    )  # fmt: skip
    if dry_run:
        _show_curves(ready)
        return
    with console.progress() as progress, console.promise(out):
        outcome = ready.run(progress)
    console.is_done(out)
    for name, part in outcome.denoisers.items():
        show_shrunk(part, console.prefix(name, outcome.denoisers))
    console.show([f"shrunk model: {out}"])


def _show_curves(ready: ReadyToShrink) -> None:
    with console.progress() as progress:
        plans = ready.plans(progress)
    for name, plan in plans.items():
        show_curve(plan, ready.recipes[name], console.prefix(name, plans))
    console.show(["nothing was written but calls that had to be sampled"])


def _show_lora(lora: ShrunkLora, out: Path) -> None:
    went = f", {len(lora.left_out)} of them went with their blocks" if lora.left_out else ""
    console.show([f"{lora.num_layers} layers{went}; {len(lora.cut)} are smaller"])
    console.show([f"LoRA that fits: {out}"])


def read_words(texts: dict[str, Any]) -> dict[str, Any]:
    """The words of a recipe from the texts of options; those that were not given are left out."""
    given = {word: text for word, text in texts.items() if text not in (None, ())}
    return {word: _value(word, text) for word, text in given.items()}


def _value(word: str, text: Any) -> Any:
    if word == "parts":
        return tuple(part.strip() for part in text.split(","))
    if word in ("multiple", "max_shapes"):
        return _number_or_name(text)
    return read_globs(word, text) if word in ("include", "exclude", "blocks") else text


def _number_or_name(text: str) -> int | str:
    return int(text) if text.lstrip("-").isdecimal() else text
