"""Options that several verbs share, and how their text becomes values."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click

from ditprune.checkpoints import statistics_file
from ditprune.errors import RecipeError
from ditprune.evaluation.catalogue import CATALOGUE
from ditprune.evaluation.metrics.clip_score import MODEL as CLIP
from ditprune.evaluation.protocol import EXTRACTORS, Measures
from ditprune.method.allocation import ALLOCATIONS
from ditprune.method.choices import PRESETS
from ditprune.method.distill import REFINEMENTS
from ditprune.method.granularity import GRANULARITIES
from ditprune.method.recipe import MASKS, Recipe, build, from_json
from ditprune.method.reconstruction import RECONSTRUCTIONS
from ditprune.method.saliency import SALIENCIES
from ditprune.method.statistics.collected import TIMESTEP_WEIGHTINGS, Statistics
from ditprune.writing.json_file import read_json

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
    click.option(
        "--auxiliary",
        is_flag=True,
        default=None,
        help="also prune block lists beside the trunk, such as text refiners",
    ),
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
    click.option("--cag-threshold", type=float, help="[default: 0.1] per channel from this G_out"),
    click.option("--preset", metavar="NAME", help=f"[default: paper] {', '.join(PRESETS)}"),
    click.option(
        "--reconstruction", metavar="NAME", help=f"[default: none] {', '.join(RECONSTRUCTIONS)}"
    ),
    click.option("--mask", metavar="NAME", help=f"[default: saliency] {', '.join(MASKS)}"),
    click.option(
        "--allocation", metavar="NAME", help=f"[default: uniform] {', '.join(ALLOCATIONS)}"
    ),
    click.option(
        "--timestep-weighting", metavar="NAME",
        help=f"[default: uniform] {', '.join(TIMESTEP_WEIGHTINGS)}",
    ),
    click.option("--refinement", metavar="NAME", help=f"[default: none] {', '.join(REFINEMENTS)}"),
    click.option(
        "--packages", type=int, metavar="N",
        help="[default: 1] runs of blocks to reconstruct one after the other",
    ),
    *_TARGETS,
    click.option(
        "--recipe",
        type=click.Path(path_type=Path),
        metavar="FILE.json",
        help="a recipe, as in ditprune.json; flags override it",
    ),
)  # fmt: skip
_PLACEMENT: tuple[Decorator, ...] = (
    click.option("--device", metavar="NAME", help="[default: cpu] cpu, cuda, cuda:1, mps"),
    click.option("--dtype", metavar="NAME", help="[default: float32] float32, bfloat16, float16"),
    click.option(
        "--max-memory", metavar="SIZE",
        help="as in 8GB; a denoiser that does not fit is streamed from disk",
    ),
)  # fmt: skip
_SAMPLING: tuple[Decorator, ...] = (
    click.option("--num-inference-steps", type=int, help="[default: the pipeline's]"),
    click.option("--guidance-scale", type=float, help="[default: the pipeline's]"),
    click.option(
        "--labels", metavar="0,1,…",
        help="[default: all] class ids to draw in turn; those of fewer items are spread over them",
    ),
    click.option(
        "--prompts", type=click.Path(path_type=Path), metavar="FILE",
        help="[default: our own 128] .txt, one prompt a line, or .tsv, id and caption; in turn or "
        "spread, as labels are",
    ),
    click.option("--height", type=int, help="[default: the pipeline's]"),
    click.option("--width", type=int, help="[default: the pipeline's]"),
    click.option(
        "--pipeline-option", "pipeline_options", multiple=True, metavar="NAME=VALUE",
        help="a further argument of the pipeline, as in num_frames=17; repeatable",
    ),
    click.option("--seed", type=int, default=0, show_default=True),
)  # fmt: skip
_MEASURING: tuple[Decorator, ...] = (
    click.option(
        "--metrics", metavar="NAME,…",
        help=f"[default: what can be had without fetching] {', '.join(CATALOGUE)}; what is named "
        "is fetched; image_reward needs the package image-reward, which pins old versions of "
        "others and is no extra of ours",
    ),
    click.option(
        "--feature-extractor", default="auto", show_default=True, metavar="NAME|FILE",
        help=f"{', '.join(EXTRACTORS)}, or a file of InceptionV3's weights",
    ),
    click.option(
        "--reference", type=click.Path(path_type=Path), metavar="DIR",
        help="real images for FID [default: the bundled digits]",
    ),
    click.option(
        "--clip", default=CLIP, show_default=True, metavar="MODEL",
        help="hub id or folder of the CLIP model",
    ),
)  # fmt: skip


def _all(decorators: tuple[Decorator, ...], command: Command) -> Command:
    for decorator in reversed(decorators):
        command = decorator(command)
    return command


def target_options(command: Command) -> Command:
    """--include, --exclude and --auxiliary."""
    return _all(_TARGETS, command)


def recipe_options(command: Command) -> Command:
    """The fields of a recipe, and a file of them."""
    return _all(_RECIPE, command)


def sampling_options(command: Command) -> Command:
    """How the pipeline is sampled."""
    return _all(_SAMPLING, command)


def placement_options(command: Command) -> Command:
    """Where the denoiser runs."""
    return _all(_PLACEMENT, command)


def measuring_options(command: Command) -> Command:
    """What is measured of images, and with what; `read_measures` takes them."""
    return _all(_MEASURING, command)


def read_measures(metrics: str | None, **others: Any) -> Measures:
    """`"fid,ssim"` and the other measuring options as one."""
    names = None if metrics is None else tuple(n.strip() for n in metrics.split(",") if n.strip())
    return Measures(names, **others)


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


# Arguments of a pipeline that have an option of their own, or that sampling sets itself.
_RESERVED = {
    "prompt", "class_labels", "generator", "output_type", "return_dict", "num_inference_steps",
    "guidance_scale", "height", "width", "latents", "num_images_per_prompt",
}  # fmt: skip


def read_pipeline_options(given: tuple[str, ...]) -> dict[str, Any]:
    """`("num_frames=17",)` → {"num_frames": 17}; values are JSON, or text where they are not."""
    options = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or not name.isidentifier():
            raise RecipeError(f"--pipeline-option '{text}': expected NAME=VALUE")
        if name in _RESERVED:
            raise RecipeError(f"--pipeline-option {name}: is set by ditprune's own options")
        try:
            options[name] = json.loads(value)
        except ValueError:
            options[name] = value
    return options


def read_prompts(file: Path | None) -> tuple[str, ...] | None:
    """The prompts of a UTF-8 file: its lines, or the captions of `id<tab>caption` in a .tsv."""
    if file is None:
        return None
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"--prompts {file}: cannot be read as UTF-8 text ({error})") from None
    if "\0" in text:
        raise RecipeError(f"--prompts {file}: holds NUL, as UTF-16 does; expected UTF-8 text")
    is_table = file.suffix.lower() == ".tsv"
    prompts = tuple(_captions(file, text) if is_table else _lines(text))
    if not prompts:
        raise RecipeError(f"--prompts {file}: no line with text; expected one prompt a line")
    return prompts


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip()]


def _captions(file: Path, text: str) -> list[str]:
    """The second column of a table; a first row of `id`, `caption` is its heading."""
    found = []
    for number, row in enumerate(_rows(file, text), start=1):
        if not any(cell.strip() for cell in row):
            continue
        if len(row) != 2 or not row[1].strip():
            raise RecipeError(
                f"--prompts {file}: line {number} has {len(row)} columns; expected an id, a tab "
                "and a caption"
            )
        if number > 1 or [cell.strip().lower() for cell in row] != ["id", "caption"]:
            found.append(row[1].strip())
    return found


def _rows(file: Path, text: str) -> Iterator[list[str]]:
    rows = csv.reader(io.StringIO(text), delimiter="\t", strict=True)
    try:
        yield from rows
    except csv.Error as error:
        raise RecipeError(
            f"--prompts {file}: line {rows.line_num} cannot be read ({error}); expected an id, a "
            "tab and a caption, quotes in pairs"
        ) from None
