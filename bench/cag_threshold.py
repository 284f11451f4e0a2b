"""Claim: the default threshold of CAG is the one with the least error on the bundled model.

    python bench/cag_threshold.py

Relative error of the predicted noise of STW + CAG by threshold, at three sparsities, each the mean
over three seeds (of the calibration and of the held-out calls alike).
"""

from __future__ import annotations

import copy

from rich.console import Console
from rich.table import Table

import ditprune
from ditprune.calibration.sample import Sampling, sample_calls
from ditprune.checkpoints.locate import locate
from ditprune.denoiser.pipeline import load_pipeline
from ditprune.denoiser.replay import relative_error
from ditprune.evaluation.held_out import predictions

THRESHOLDS = (0.0, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 100.0)
SPARSITIES, SEEDS = (0.3, 0.5, 0.7), (0, 1, 2)


def main() -> None:
    pipeline = load_pipeline(locate("bundled"))
    dense = pipeline.transformer
    errors: dict[tuple[object, float], list[float]] = {}
    counts: dict[object, int] = {}
    for seed in SEEDS:
        calibration, held_out = (
            sample_calls(pipeline, Sampling(128, "uniform", 25, 1.5, seed=seed, purpose=purpose))
            for purpose in ("calibration", "held-out")
        )
        stats = ditprune.calibrate(dense, calibration)
        noise = predictions(dense, held_out)
        for threshold in THRESHOLDS:
            for sparsity in SPARSITIES:
                pruned = copy.deepcopy(dense)
                outcome = ditprune.prune_(pruned, stats, sparsity, cag_threshold=threshold)
                error = relative_error(zip(predictions(pruned, held_out), noise, strict=True))
                errors.setdefault((threshold, sparsity), []).append(error)
                targets = outcome.targets.values()
                counts[threshold] = sum(t.granularity == "channel" for t in targets)
    table = Table("threshold", "per channel", *(f"{s:.0%}" for s in SPARSITIES), box=None)
    for threshold in THRESHOLDS:
        means = (sum(errors[threshold, s]) / len(SEEDS) for s in SPARSITIES)
        table.add_row(str(threshold), f"{counts[threshold]} of 56", *(f"{m:.5f}" for m in means))
    Console(highlight=False, width=100).print(table)


if __name__ == "__main__":
    main()
