"""What does a test bed draw? Writes a sheet of pictures of held-out scenes, with their captions.

python examples/draw_testbed.py testbeds/pixart --out pixart.png --device cuda
"""

from __future__ import annotations

import argparse
import sys
import textwrap
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "examples")]

import torch  # noqa: E402
from diffusers import DiffusionPipeline  # noqa: E402
from PIL import Image, ImageDraw  # noqa: E402
from testbed_training.settings import DRAWING  # noqa: E402

from testbeds import scenes  # noqa: E402

COLUMNS, CELL, LINE = 10, 128, 11


def draw(
    pipeline: DiffusionPipeline, prompts: list[str], batch_size: int, changes: dict[str, object]
) -> list[Image.Image]:
    """The pictures of the prompts; picture i has seed i."""
    bed = "flux" if "Flux" in type(pipeline).__name__ else "pixart"
    options, images = {**DRAWING[bed], **changes}, []
    for first in range(0, len(prompts), batch_size):
        batch = prompts[first : first + batch_size]
        if "negative_prompt" in options:
            options["negative_prompt"] = [""] * len(batch)
        seeds = [torch.Generator().manual_seed(first + i) for i in range(len(batch))]
        images += pipeline(batch, generator=seeds, **options).images
    return images


def sheet(images: list[Image.Image], prompts: list[str]) -> Image.Image:
    """All pictures in rows, twice as large, every one above its prompt."""
    height = CELL + 4 * LINE
    rows = -(-len(images) // COLUMNS)
    page = Image.new("RGB", (COLUMNS * (CELL + 4), rows * (height + 4)), "white")
    pen = ImageDraw.Draw(page)
    for i, (image, prompt) in enumerate(zip(images, prompts, strict=True)):
        x, y = i % COLUMNS * (CELL + 4), i // COLUMNS * (height + 4)
        page.paste(image.resize((CELL, CELL), Image.Resampling.NEAREST), (x, y))
        for number, line in enumerate(textwrap.wrap(prompt, 21)[:4]):
            pen.text((x + 1, y + CELL + number * LINE), line, fill="black")
    return page


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, required=True, help="the PNG")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--num-images", type=int, default=50)
    parser.add_argument("--batch-size", type=int, default=50)
    parser.add_argument("--split", choices=["held_out", "train"], default="held_out")
    parser.add_argument("--guidance", type=float, help="guidance_scale or true_cfg_scale")
    parser.add_argument("--steps", type=int, help="num_inference_steps")
    args = parser.parse_args()
    pipeline = DiffusionPipeline.from_pretrained(args.folder, local_files_only=True)
    pipeline.to(args.device).set_progress_bar_config(disable=True)
    changes: dict[str, object] = {}
    if args.guidance is not None:
        flux = "Flux" in type(pipeline).__name__
        changes["true_cfg_scale" if flux else "guidance_scale"] = args.guidance
    if args.steps is not None:
        changes["num_inference_steps"] = args.steps
    drawn = [scenes.scene(index, args.split) for index in range(args.num_images)]
    prompts = [scenes.caption(one, index) for index, one in enumerate(drawn)]
    start = time.monotonic()
    images = draw(pipeline, prompts, args.batch_size, changes)
    seconds = time.monotonic() - start
    args.out.parent.mkdir(parents=True, exist_ok=True)
    sheet(images, prompts).save(args.out)
    print(f"{len(images)} pictures in {seconds:.1f} s: {args.out}")


if __name__ == "__main__":
    main()
