"""Claim (the paper's): DiT-Pruning < STW per channel < Wanda, in error and in FID, at 50 %.

    python bench/paper_order.py [--num-images 1000] [--sparsity 0.5] [--tables main …]

Prints, for one model: the main comparison, the ablation (paper, Tables 5 and 11), the exponents
(Table 13), N:M (Table 6), and the thresholds of CAG. Everything is calibrated on 128 samples; the
relative error is over 128 held-out calls, FID over fresh samples with the same seeds for all.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.table import Table

import ditprune
from ditprune.calibration.draw import conditions
from ditprune.calibration.pipeline import load_pipeline
from ditprune.calibration.sample import Sampling, sample_calls
from ditprune.checkpoints.locate import locate
from ditprune.evaluation import judge
from ditprune.evaluation.evaluate import (
    Protocol,
    as_unit,
    draw_images,
    held_out_calls,
    predictions,
    relative_error_between,
)
from ditprune.metrics import similarity

Recipe = dict[str, Any]


def recipes(sparsity: float) -> Iterator[tuple[str, str, Recipe]]:
    """(table, row, arguments of prune_)."""

    def share(saliency: str, granularity: str, **constants: Any) -> Recipe:
        return {"saliency": saliency, "granularity": granularity, "sparsity": sparsity, **constants}

    def power(m: float, n: float) -> Recipe:
        return share("power", "cag", weight_power=m, activation_power=n)

    yield "main", "magnitude (layer)", share("magnitude", "layer")
    yield "main", "magnitude (channel)", share("magnitude", "channel")
    yield "main", "RIA (channel)", share("ria", "channel")
    yield "ablation", "Wanda", share("wanda", "channel")
    yield "ablation", "+ STW", share("stw", "channel")
    yield "ablation", "+ STW + CAG = DiT-Pruning", share("stw", "cag")
    yield "ablation", "Wanda + CAG", share("wanda", "cag")
    for m, n in ((0.5, 1), (1, 1), (2, 1), (3, 1), (1, 0)):
        yield "exponents, CAG", f"m={m:g} n={n:g}", power(m, n)
    for pattern in ("2:4", "4:8"):
        for saliency in ("magnitude", "wanda", "stw"):
            yield "N:M", f"{pattern} {saliency}", {"saliency": saliency, "pattern": pattern}
    for saliency in ("wanda", "stw"):
        yield "threshold", f"{saliency}, all per layer", share(saliency, "layer")
    for threshold in (0.02, 0.1, 0.3, 1.0, 3.0, "auto"):
        yield "threshold", f"stw, T={threshold}", share("stw", "cag", cag_threshold=threshold)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="bundled")
    parser.add_argument("--num-images", type=int, default=1000)
    parser.add_argument("--sparsity", type=float, default=0.5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tables", nargs="+", help="only these, as in --tables main ablation")
    args = parser.parse_args()
    protocol = Protocol(args.num_images, args.seed, 25, 1.5, batch_size=100)
    sampling = Sampling(num_inference_steps=25, guidance_scale=1.5, seed=args.seed)

    pipeline = load_pipeline(locate(args.model))
    dense = pipeline.transformer
    stats = ditprune.calibrate(dense, sample_calls(pipeline, sampling))
    asked = conditions(pipeline, None, None)
    asked = [asked[i % len(asked)] for i in range(args.num_images)]
    held_out = held_out_calls(pipeline, protocol)["transformer"]
    noise = predictions(dense, held_out)
    reference = as_unit(draw_images(pipeline, asked, protocol, "dense"))

    console = Console(highlight=False, soft_wrap=True, width=120)
    table = Table("table", "recipe", "relative error", "SSIM", "FID*", "accuracy", box=None)
    read = judge.read(reference, asked)
    table.add_row("", "dense", "0", "–", f"{read['fid']:.3f}", f"{read['accuracy']:.3f}")
    for name, row, recipe in recipes(args.sparsity):
        if args.tables and name.split(",")[0] not in args.tables:
            continue
        pipeline.transformer = copy.deepcopy(dense)
        outcome = ditprune.prune_(pipeline.transformer, stats, **recipe)
        error = relative_error_between(predictions(pipeline.transformer, held_out), noise)
        images = as_unit(draw_images(pipeline, asked, protocol, row))
        read = judge.read(images, asked)
        ssim = similarity.ssim(images, reference).mean().item()
        if "T=" in row:
            per_channel = sum(t.granularity == "channel" for t in outcome.targets.values())
            row += f" ({outcome.cag_threshold:.3g}; {per_channel} per channel)"
        table.add_row(
            name,
            row,
            f"{error:.5f}",
            f"{ssim:.4f}",
            f"{read['fid']:.3f}",
            f"{read['accuracy']:.3f}",
        )
    console.print(table)
    console.print(
        f"{args.model}, sparsity {args.sparsity:g}, {args.num_images} images, "
        f"{protocol.num_held_out} held-out calls, 25 steps, guidance 1.5, seed {args.seed}\n"
        f"* {judge.FEATURES}"
    )


if __name__ == "__main__":
    main()
