"""Claim: what weight updates give, method by method: the tables of the README and the log.

    python bench/updating.py [--model bundled] [--out updating.jsonl] [--levels 0.5 2:4 …]

Every method prunes the model at every level from the same calibration samples; error is on held-out
calls, FID, accuracy and SSIM on the same seeds as the dense model's images. Each cell is a line of
`--out` as soon as it is done, and a line that is there is not made again. Seconds are of one core:
the process's own, so that other work on the machine does not count.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor

import ditprune
from ditprune import bundled
from ditprune.calibration.draw import conditions, of_items
from ditprune.calibration.sample import Sampling, sample_unit
from ditprune.calls import DENOISER, Call
from ditprune.checkpoints.locate import locate
from ditprune.denoiser.pipeline import load_pipeline
from ditprune.denoiser.replay import relative_error
from ditprune.evaluation.drawing import Images, as_unit, draw_batch
from ditprune.evaluation.extractors import CLASSIFIER_TEXT, can_classify
from ditprune.evaluation.held_out import predictions, sample_held_out
from ditprune.evaluation.metrics import distributions, per_image
from ditprune.evaluation.protocol import Protocol
from ditprune.method.words import build

LEVELS = ("0.5", "0.6", "0.7", "0.8", "0.85", "2:4")
OWN_MASK = {"mask": "reconstruction"}
METHODS: dict[str, dict[str, Any]] = {
    "best": {"preset": "best"},
    "fast": {"preset": "fast"},
    "DiT-Pruning": {},
    # arXiv 2510.06751: weights of timesteps in the Hessian, and packages of blocks in turn.
    "OBS-Diff": {
        "reconstruction": "obs", "timestep_weighting": "log-decrease", "packages": 4, **OWN_MASK,
    },
    "ADMM": {"reconstruction": "admm", **OWN_MASK},
    "ADMM + budgets": {"reconstruction": "admm", "allocation": "sensitivity", **OWN_MASK},
    "OBS": {"reconstruction": "obs", **OWN_MASK},
    "Wanda": {"saliency": "wanda", "granularity": "channel"},
    "magnitude": {"saliency": "magnitude", "granularity": "layer"},
    "ADMM, packages": {"reconstruction": "admm", "packages": 4, **OWN_MASK},
    "ADMM, STW's mask": {"reconstruction": "admm"},
}  # fmt: skip


def words_for(method: str, level: str) -> dict[str, Any] | None:
    """The recipe's words, or None where there is no such recipe."""
    words = dict(METHODS[method])
    if ":" not in level:
        return words | {"sparsity": float(level)}
    if words.get("allocation"):
        return None
    if method == "DiT-Pruning":
        words["saliency"] = "stw"
    words.pop("granularity", None)
    return words | {"pattern": level}


class World:
    """The dense model and all that is compared with it, made once."""

    def __init__(self, model: str, num_samples: int, num_images: int, progress: Any) -> None:
        self.pipeline = load_pipeline(locate(model))
        self.dense = self.pipeline.transformer
        sampling = Sampling(num_samples, num_inference_steps=25, guidance_scale=1.5)
        self.calls: list[Call] = [
            call
            for unit in range(sampling.num_units)
            for call in sample_unit(self.pipeline, sampling, unit, (DENOISER,))[0]
        ]
        self.stats = ditprune.calibrate(self.dense, self.calls)
        self.protocol = Protocol(num_images, 0, 25, 1.5, batch_size=100)
        pool = conditions(self.pipeline, None, None)
        self.asked = of_items(pool, num_images)
        self.held_out = sample_held_out(self.pipeline, self.protocol).calls[DENOISER]
        self.noise = predictions(self.dense, self.held_out)
        self.progress = progress
        self.images = self.draw("dense")

    def draw(self, name: str) -> Tensor:
        batches = []
        for items in Images(Path(), len(self.asked), self.protocol.batch_size).ranges:
            batches.append(draw_batch(self.pipeline, self.asked, self.protocol, items)[0])
            self.progress(f"images: {name}", items.stop, len(self.asked))
        return as_unit(torch.cat(batches))

    def measure(self, words: dict[str, Any]) -> dict[str, Any]:
        """Prune a copy, and how good it is."""
        denoiser = copy.deepcopy(self.dense)
        chosen = build(**words)
        given = {"batches": self.calls} if chosen.needs_calls else {}
        start_s, start_cpu_s = time.perf_counter(), time.process_time()
        outcome = ditprune.prune_(denoiser, self.stats, progress=self.progress, **given, **words)
        wall_s, cpu_s = time.perf_counter() - start_s, time.process_time() - start_cpu_s
        self.pipeline.transformer = denoiser
        images = self.draw("pruned")
        self.pipeline.transformer = self.dense
        noise = predictions(denoiser, self.held_out)
        return {
            "error": relative_error(zip(noise, self.noise, strict=True)),
            **judged(images, self.asked),
            "ssim": per_image.ssim(images, self.images).mean().item(),
            "core_s": cpu_s, "wall_s": wall_s, "sparsity": outcome.sparsity,
        }  # fmt: skip


def judged(images: Tensor, asked: list[Any]) -> dict[str, float | None]:
    """FID against MNIST and accuracy by the bundled classifier; None for other images."""
    if not can_classify(images, asked):
        return {"fid": None, "accuracy": None}
    classifier = bundled.load_classifier()
    with torch.no_grad():
        features = classifier.features(images)
    fid = distributions.frechet_distance(bundled.load_reference(), features).value
    right = bundled.predict(classifier, images) == torch.tensor(asked)
    return {"fid": fid, "accuracy": right.float().mean().item()}


def read(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []


def cells(args: argparse.Namespace) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """What is asked for and not there yet."""
    there = {(row["method"], row["level"]) for row in read(args.out)}
    for method in args.methods:
        for level in args.levels:
            words = words_for(method, level)
            if words is not None and (method, level) not in there:
                yield method, level, words


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="bundled")
    parser.add_argument("--out", type=Path, default=Path("updating.jsonl"))
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--levels", nargs="+", default=list(LEVELS))
    parser.add_argument("--num-samples", type=int, default=1024)
    parser.add_argument("--num-images", type=int, default=1000)
    args = parser.parse_args()
    console = Console(highlight=False, soft_wrap=True)
    todo = list(cells(args))
    if todo:
        last = [0.0]

        def progress(stage: str, done: int, total: int) -> None:
            if time.monotonic() - last[0] > 30 or done == total:
                last[0] = time.monotonic()
                print(f"  {stage} {done}/{total}", flush=True)

        world = World(args.model, args.num_samples, args.num_images, progress)
        dense = judged(world.images, world.asked)
        for method, level, words in todo:
            row = {"method": method, "level": level, **world.measure(words), "dense": dense}
            with args.out.open("a") as file:
                file.write(json.dumps(row) + "\n")
            console.print(json.dumps(row))
    show_wide(read(args.out), console)
    show(read(args.out), console)
    console.print(
        f"{args.model}, {args.num_samples} calibration samples, {args.num_images} images, "
        f"25 steps, guidance 1.5, {torch.get_num_threads()} threads\n* {CLASSIFIER_TEXT}"
    )


def show(rows: list[dict[str, Any]], console: Console) -> None:
    """One line for each method and level, in Markdown."""
    heads = ("level", "method", "error", "FID*", "accuracy", "SSIM", "core s")
    table = Table(*heads, box=box.MARKDOWN)
    dense = rows[0]["dense"]
    table.add_row("–", "dense", "0", f"{dense['fid']:.3f}", f"{dense['accuracy']:.3f}", "1", "–")
    for level in LEVELS:
        for row in sorted((r for r in rows if r["level"] == level), key=lambda r: -r["error"]):
            table.add_row(
                level, row["method"], f"{row['error']:.5f}", f"{row['fid']:.3f}",
                f"{row['accuracy']:.3f}", f"{row['ssim']:.4f}", f"{row['core_s']:.0f}",
            )  # fmt: skip
    console.print(table)


def show_wide(rows: list[dict[str, Any]], console: Console) -> None:
    """The README's table: a line for each method, a column for each level."""
    found = {(row["method"], row["level"]): row for row in rows}
    table = Table("method", *LEVELS, "core s", box=box.MARKDOWN)
    for method in dict.fromkeys(row["method"] for row in rows):
        own = [found.get((method, level)) for level in LEVELS]
        spent = sorted(row["core_s"] for row in own if row)
        table.add_row(method, *map(cell, own), f"{spent[0]:.1f}–{spent[-1]:.1f}")
    console.print(table)


def cell(row: dict[str, Any] | None) -> str:
    """error · FID* · accuracy · SSIM."""
    if row is None:
        return "–"
    return f"{row['error']:.3g} · {row['fid']:.2f} · {row['accuracy']:.3f} · {row['ssim']:.3f}"


if __name__ == "__main__":
    main()
