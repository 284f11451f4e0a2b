"""Which options do several verbs share, and how does their text become values?"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click

from ditprune.cli.path_type import PATH
from ditprune.errors import RecipeError
from ditprune.evaluation.catalogue import CATALOGUE
from ditprune.evaluation.protocol import CLIP_MODEL, EXTRACTORS, Measures
from ditprune.writing.json_file import parse_json

_MOST_BYTES, _PART_BYTES = 64 * 1024**2, 1024**2  # of a file of prompts, and of a read
_LINE_END = re.compile(r"\r\n|\n|\r")  # other characters that end lines can stand in a prompt
_HEADING = {"caption", "captions", "prompt", "prompts", "text"}

Command = Callable[..., Any]
Decorator = Callable[[Command], Command]


def _together(*options: Decorator) -> Decorator:
    """Several options as one decorator, in the order of the help."""

    def decorate(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


statistics_option = click.option(
    "--statistics", type=PATH, metavar="FILE", help="from ditprune calibrate"
)
# Where the denoiser runs.
placement_options = _together(
    click.option("--device", metavar="NAME", help="[default: cpu] cpu, cuda, cuda:1, mps"),
    click.option("--dtype", metavar="NAME", help="[default: float32] float32, bfloat16, float16"),
    click.option(
        "--max-memory", metavar="SIZE",
        help="as in 8GB; a denoiser that does not fit is streamed from disk",
    ),
)  # fmt: skip
# What the pipeline draws, and of which size.
condition_options = _together(
    click.option(
        "--labels", metavar="0,1,…",
        help="[default: all] class ids to draw in turn; if there are fewer items, spread over them",
    ),
    click.option(
        "--prompts", type=PATH, metavar="FILE",
        help="[default: our own 128] .txt with one prompt a line, or .tsv with id and caption; "
        "drawn in turn or spread, as labels are",
    ),
    click.option("--height", type=int, help="[default: the pipeline's]"),
    click.option("--width", type=int, help="[default: the pipeline's]"),
    click.option(
        "--pipeline-option", "pipeline_options", multiple=True, metavar="NAME=VALUE",
        help="another argument of the pipeline, as in num_frames=17; repeatable",
    ),
    click.option("--seed", type=int, default=0, show_default=True),
)  # fmt: skip
# How the pipeline draws images.
sampling_options = _together(
    click.option("--num-inference-steps", type=int, help="[default: the pipeline's]"),
    click.option("--guidance-scale", type=float, help="[default: the pipeline's]"),
    condition_options,
)
# What is measured of images, and with what; `read_measures` takes them.
measuring_options = _together(
    click.option(
        "--metrics", metavar="NAME,…",
        help=f"[default: all that need no download] {', '.join(CATALOGUE)}; metrics given by "
        "name are downloaded; image_reward needs the package image-reward, which pins old "
        "versions of other packages and is no extra of ours",
    ),
    click.option(
        "--feature-extractor", default="auto", show_default=True, metavar="NAME|FILE",
        help=f"{', '.join(EXTRACTORS)}, or a file of InceptionV3's weights",
    ),
    click.option(
        "--reference", type=PATH, metavar="DIR",
        help="real images for FID [default: the bundled digits]",
    ),
    click.option(
        "--clip", default=CLIP_MODEL, show_default=True, metavar="MODEL",
        help="hub id or folder of the CLIP model",
    ),
)  # fmt: skip


def read_measures(metrics: str | None, **others: Any) -> Measures:
    """`"fid,ssim"` and the other measuring options as one value."""
    names = None if metrics is None else tuple(n.strip() for n in metrics.split(",") if n.strip())
    return Measures(names, **others)


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


def read_pipeline_options(given: tuple[str, ...]) -> dict[str, Any]:
    """`("num_frames=17",)` → {"num_frames": 17}; values that are no JSON are text."""
    options = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or not name.isidentifier():
            raise RecipeError(f"--pipeline-option '{text}': expected NAME=VALUE")
        try:
            options[name] = parse_json(value)
        except ValueError:
            options[name] = value
    return options


def read_prompts(file: Path | None) -> tuple[str, ...] | None:
    """The prompts of a UTF-8 file: its lines, or the captions of `id<tab>caption` in a .tsv."""
    if file is None:
        return None
    try:
        with file.open("rb") as stream:
            raw = bytearray()  # a device has no end, and a read takes the memory that it is told
            while len(raw) <= _MOST_BYTES and (part := stream.read(_PART_BYTES)):
                raw += part
        text = raw.decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"--prompts {file}: cannot be read as UTF-8 text ({error})") from None
    if "\0" in text:
        raise RecipeError(f"--prompts {file}: holds NUL, as UTF-16 does; expected UTF-8 text")
    if len(raw) > _MOST_BYTES:
        raise RecipeError(f"--prompts {file}: is larger than {_MOST_BYTES >> 20} MiB")
    lines = _captions(file, text) if file.suffix.lower() == ".tsv" else _LINE_END.split(text)
    prompts = tuple(line.strip() for line in lines if line.strip())
    if not prompts:
        raise RecipeError(f"--prompts {file}: no line with text; expected one prompt a line")
    return prompts


def _captions(file: Path, text: str) -> Iterator[str]:
    """The second column of a table; its first row may be a heading, as in `_HEADING`."""
    rows = csv.reader(io.StringIO(text, newline=""), delimiter="\t", strict=True)
    is_first = True
    try:
        for number, row in enumerate(rows, start=1):
            cells = [cell.strip() for cell in row]
            if any(cells) and (len(cells) != 2 or not cells[1]):
                raise RecipeError(
                    f"--prompts {file}: line {number} has {len(row)} columns; expected an id, a "
                    "tab and a caption"
                )
            if any(cells):
                is_heading = cells[1].lower() in _HEADING and not cells[0].isdecimal()
                if not (is_first and is_heading):
                    yield cells[1]
                is_first = False
    except csv.Error as error:
        raise RecipeError(
            f"--prompts {file}: line {rows.line_num} cannot be read ({error}); expected an id, a "
            "tab and a caption, quotes in pairs"
        ) from None
