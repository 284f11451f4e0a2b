"""A model that predicts NaN or Inf: its numbers are none, its reader is told, nothing is lost."""

from __future__ import annotations

import json
import math
import shutil
from html import unescape
from pathlib import Path
from typing import Any

import pytest
import torch

from ditprune.checkpoints.locate import locate
from ditprune.evaluation.compare import compare as evaluate
from ditprune.evaluation.metrics.error_rows import ErrorRow
from ditprune.evaluation.protocol import Protocol
from ditprune.evaluation.results import not_finite_warnings
from ditprune.method.words import build
from ditprune.pruning.loop import prune_checkpoint
from ditprune.reporting.load import load
from ditprune.reporting.page import render
from ditprune.reproduce.rows import Options
from ditprune.reproduce.run import reproduce_study
from folders import edit_tensors, shards_of

SMALL = Protocol(6, num_inference_steps=2, guidance_scale=1.5, num_held_out=4)


def spoil(folder: Path, value: float) -> None:
    """Put a number into the last layer."""
    (shard,) = shards_of(folder / "transformer")

    def put(tensors: dict[str, torch.Tensor]) -> None:
        tensors["proj_out_2.weight"][0, 0] = value

    edit_tensors(shard, put)


def both(tiny_pipeline: Path, place: Path) -> tuple[Path, Path]:
    """The dense model and a pruned one."""
    dense = Path(shutil.copytree(tiny_pipeline, place / "dense"))
    prune_checkpoint(
        locate(str(dense)), place / "half", None, build(saliency="magnitude", granularity="layer")
    )
    return dense, place / "half"


def run(dense: Path, pruned: Path, out: Path) -> dict[str, Any]:
    evaluate(locate(str(dense)), [("half", locate(str(pruned)))], out, SMALL)
    text = (out / "results.json").read_text(encoding="utf-8")
    json.loads(text, parse_constant=pytest.fail)
    return load(out)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_pruned_model_that_is_not_finite(value: float, tiny_pipeline: Path, tmp_path) -> None:
    dense, pruned = both(tiny_pipeline, tmp_path)
    spoil(pruned, value)
    results = run(dense, pruned, tmp_path / "e")
    own = results["models"][1]
    assert own["metrics"]["relative_error"] is None
    assert [point["error"] for point in own["error_by_timestep"]] == [None, None]
    assert own["metrics"]["ssim"]["value"] < 1
    predictions, images, *others = own["warnings"]
    assert predictions.startswith(
        "its predictions are not finite (NaN or Inf) in 8 of 8 rows of held-out calls"
    )
    assert images.startswith("6 of 6 images are not finite (NaN or Inf)")
    assert all("another --dtype" in one for one in (predictions, images))
    assert not any("not finite" in one or "relative error" in one for one in others)
    assert results["models"][0]["warnings"] == [
        one for one in results["models"][0]["warnings"] if "not finite" not in one
    ]
    made = render(results)
    assert "visibly worse than dense: 6 of its own images are not finite" in unescape(made)
    assert "half: its predictions are not finite" in made
    assert "No prediction is finite" in made


def test_a_dense_model_that_is_not_finite(tiny_pipeline: Path, tmp_path) -> None:
    dense, pruned = both(tiny_pipeline, tmp_path)
    spoil(dense, math.nan)
    results = run(dense, pruned, tmp_path / "e")
    assert "not judged: 6 of the dense model's images are not finite" in unescape(render(results))
    first, second = results["models"]
    assert first["warnings"][0].startswith("6 of 6 images are not finite")
    assert second["warnings"][0].startswith("the dense model's predictions are not finite")
    assert second["metrics"]["relative_error"] is None


def test_a_study_of_a_model_that_is_not_finite(
    tiny_pipeline: Path, tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its rows are kept, and a study that goes on finds them."""
    from ditprune.reproduce import workbench

    def prune(model: Any, folder: Path, *args: Any, **options: Any) -> None:
        prune_checkpoint(model, folder, *args, **options)
        spoil(folder, math.inf)

    monkeypatch.setattr(workbench, "prune_checkpoint", prune)
    options = Options(num_images=3, num_held_out=4, batch_size=2, num_samples=4, steps=(2,),
                      guidance_scales=(1.5,))  # fmt: skip
    first, second = (
        reproduce_study(
            "ablation", locate(str(tiny_pipeline)), tmp_path / "e", options, command="again"
        )
        for _ in range(2)
    )
    assert first == second
    rows = first["ablation"]["rows"]
    assert [row["metrics"]["relative_error"] for row in rows] == [None] * 4
    assert all("predictions are not finite" in row["warnings"][0] for row in rows[1:])
    assert not any(one["metric"] == "relative_error" for one in first["ablation"]["findings"])


def test_what_is_told() -> None:
    good, lost, dense = (
        ErrorRow(*both, 0.5, 1, "a") for both in ((1, 2), (math.inf, 2), (math.nan,) * 2)
    )
    assert not_finite_warnings([good, good], 0, 9) == []
    (own,) = not_finite_warnings([good, lost, lost], 0, 9)
    assert own.startswith("its predictions are not finite (NaN or Inf) in 2 of 3 rows")
    theirs, own, images = not_finite_warnings([good, lost, dense], 4, 1000)
    assert theirs.startswith("the dense model's predictions are not finite (NaN or Inf) in 1 of 3")
    assert own.startswith("its predictions are not finite (NaN or Inf) in 1 of 3")
    assert images.startswith("4 of 1,000 images are not finite")
