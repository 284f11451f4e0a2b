"""Options that several verbs share, and how their text becomes values."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from ditprune.checkpoints import statistics_file
from ditprune.checkpoints.locate import read_json
from ditprune.errors import RecipeError
from ditprune.granularity import GRANULARITIES
from ditprune.recipe import Recipe, build, from_json
from ditprune.saliency import SALIENCIES
from ditprune.statistics.collected import Statistics

Command = Callable[..., Any]
Decorator = Callable[[Command], Command]

statistics_option = click.option(
    "--statistics",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="from ditprune calibrate",
)


_TARGETS: tuple[Decorator, ...] = (
    click.option("--include", multiple=True, metavar="GLOB", help="take only these; repeatable"),
    click.option("--exclude", multiple=True, metavar="GLOB", help="leave these out; repeatable"),
)
_RECIPE: tuple[Decorator, ...] = (
    click.option("--saliency", metavar="NAME", help=f"[default: stw] {', '.join(SALIENCIES)}"),
    click.option(
        "--granularity", metavar="NAME", help=f"[default: cag] {', '.join(GRANULARITIES)}"
    ),
    click.option("--sparsity", type=float, help="[default: 0.5] share of each group to remove"),
    click.option("--pattern", metavar="N:M", help="keep N of every M weights, as in 2:4"),
    click.option("--weight-power", type=float, help="exponent of |W|"),
    click.option("--activation-power", type=float, help="exponent of the input norm"),
    click.option("--cag-threshold", metavar="T", help="per channel from this G_out, or auto"),
    *_TARGETS,
    click.option(
        "--recipe",
        type=click.Path(path_type=Path),
        metavar="FILE.json",
        help="a recipe, as in ditprune.json; flags override it",
    ),
)
_SAMPLING: tuple[Decorator, ...] = (
    click.option("--num-inference-steps", type=int, help="[default: the pipeline's]"),
    click.option("--guidance-scale", type=float, help="[default: the pipeline's]"),
    click.option("--labels", metavar="0,1,…", help="[default: all] class ids to draw"),
    click.option("--prompts", type=click.Path(path_type=Path), help="a file, one prompt a line"),
    click.option("--seed", type=int, default=0, show_default=True),
)


def _all(decorators: tuple[Decorator, ...], command: Command) -> Command:
    for decorator in reversed(decorators):
        command = decorator(command)
    return command


def target_options(command: Command) -> Command:
    """--include and --exclude."""
    return _all(_TARGETS, command)


def recipe_options(command: Command) -> Command:
    """The fields of a recipe, and a file of them."""
    return _all(_RECIPE, command)


def sampling_options(command: Command) -> Command:
    """How the pipeline is sampled."""
    return _all(_SAMPLING, command)


def read_recipe(recipe: Path | None, **fields: Any) -> Recipe:
    """The recipe of a command line: its file, if any, overridden by its flags."""
    fields = {key: value for key, value in fields.items() if value not in (None, ())}
    if recipe is None:
        return build(**fields)
    if not recipe.is_file():
        raise RecipeError(f"--recipe {recipe}: no such file; expected a JSON recipe")
    content = read_json(recipe)
    return from_json(content.get("recipe", content), str(recipe), **fields)


def read_statistics(file: Path | None) -> dict[str, Statistics] | None:
    """The statistics of each denoiser from a file, where one is given."""
    return None if file is None else statistics_file.load(file)


def read_labels(text: str | None) -> tuple[int, ...] | None:
    """`"0,1,5"` → (0, 1, 5)."""
    if text is None:
        return None
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise RecipeError(
            f"--labels '{text}': expected class ids with commas, as in 0,1,2"
        ) from None


def read_prompts(file: Path | None) -> tuple[str, ...] | None:
    """The lines of a UTF-8 text file that are not blank."""
    if file is None:
        return None
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"--prompts {file}: cannot be read as UTF-8 text ({error})") from None
    prompts = tuple(line.strip() for line in lines if line.strip())
    if not prompts:
        raise RecipeError(f"--prompts {file}: no line with text; expected one prompt a line")
    return prompts
