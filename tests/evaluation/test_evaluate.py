"""Dense against pruned: every number stands for what it says, and for nothing else."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from ditprune.calibration.sample import sample_calls
from ditprune.checkpoints.locate import locate
from ditprune.denoiser.pipeline import load_pipeline
from ditprune.errors import RecipeError
from ditprune.evaluation.catalogue import CATALOGUE
from ditprune.evaluation.compare import compare as evaluate
from ditprune.evaluation.protocol import Protocol
from ditprune.method.words import build
from ditprune.pruning.loop import prune_checkpoint
from folders import files_of, save_pipeline

SMALL = {"num_images": 10, "num_inference_steps": 2, "guidance_scale": 1.5, "num_held_out": 6}
KEYS = {
    "name", "sparsity_asked", "sparsity", "recipe", "calibrate_command", "command", "metrics",
    "num_spoiled", "warnings", "error_by_timestep", "accounting", "targets", "told",
}  # fmt: skip


@pytest.fixture(scope="module")
def pruned(tiny_pipeline, tiny_stats, tmp_path_factory) -> dict[str, Path]:
    """The tiny pipeline pruned a little, a lot, and in a pattern."""
    place = tmp_path_factory.mktemp("evaluate")
    runs = {"little": {"sparsity": 0.1}, "much": {"sparsity": 0.7}, "2in4": {"pattern": "2:4"}}
    for name, words in runs.items():
        prune_checkpoint(
            locate(str(tiny_pipeline)), place / name, {"any": tiny_stats}, build(**words)
        )
    return {name: place / name for name in runs}


def run(dense: Path | str, models: dict[str, Path], out: Path, **options: Any) -> dict[str, Any]:
    folders = [(name, locate(str(folder))) for name, folder in models.items()]
    return evaluate(locate(str(dense)), folders, out, Protocol(**{**SMALL, **options}))


def value(row: dict[str, Any], metric: str) -> float:
    return row["metrics"][metric]["value"]


def timeless(results: dict[str, Any]) -> list[dict[str, Any]]:
    """The models without the seconds they took."""
    models = json.loads(json.dumps(results["models"]))
    for row in models:
        assert row["accounting"].pop("seconds_per_image") > 0
        row["accounting"].pop("peak_memory_bytes")
    return models


def visible(folder: Path) -> dict[str, bytes]:
    """The files of results, without the images kept for the next run."""
    return {n: raw for n, raw in files_of(folder).items() if not n.startswith(".images/")}


def test_results_json_holds_every_field(tiny_pipeline, pruned, tmp_path) -> None:
    results = run(tiny_pipeline, pruned, tmp_path / "a" / "e")
    text = (tmp_path / "a" / "e" / "results.json").read_text(encoding="utf-8")
    assert json.loads(text, parse_constant=pytest.fail) == json.loads(json.dumps(results))
    assert [row["name"] for row in results["models"]] == ["dense", *pruned]
    assert all(row.keys() == KEYS for row in results["models"])
    protocol = results["protocol"]
    assert protocol.items() >= {**SMALL, "seed": 0, "pipeline": "DiTPipeline"}.items()
    assert (protocol["scheduler"], protocol["resolution"]) == ("DDIMScheduler", [16, 16])
    assert protocol["dense"] == "model"
    assert "torch" in protocol["versions"]
    assert visible(tmp_path / "a" / "e").keys() == {"results.json", "grid.png"}
    assert results["metrics"].keys() == CATALOGUE.keys()
    assert all(row["metrics"].keys() == CATALOGUE.keys() for row in results["models"])
    assert results["format"] == 2
    assert results["command"] is None  # it was called from Python
    with Image.open(tmp_path / "a" / "e" / "grid.png") as grid:
        assert grid.size == (190 + 10 * 100 + 4, 4 * 100 + 4)


def test_more_pruning_is_further_away(tiny_pipeline, pruned, tmp_path) -> None:
    rows = {row["name"]: row for row in run(tiny_pipeline, pruned, tmp_path)["models"]}
    little, much = rows["little"], rows["much"]
    assert 0 < value(little, "relative_error") < value(much, "relative_error")
    assert 1 > value(little, "ssim") > value(much, "ssim")
    assert 100 > value(little, "psnr") > value(much, "psnr")
    assert [rows[n]["sparsity_asked"] for n in ("dense", *pruned)] == [0.0, 0.1, 0.7, "2:4"]
    for name, share in (("little", 0.1), ("much", 0.7), ("2in4", 0.5)):
        assert rows[name]["sparsity"] == pytest.approx(share, abs=0.02)


def test_the_relative_error_is_the_definition_over_the_held_out_calls(
    tiny_pipeline, pruned, tmp_path
) -> None:
    from diffusers import DiTTransformer2DModel

    row = run(tiny_pipeline, {"much": pruned["much"]}, tmp_path)["models"][1]
    pipeline = load_pipeline(locate(str(tiny_pipeline)))
    other = DiTTransformer2DModel.from_pretrained(pruned["much"] / "transformer")
    upper = lower = 0.0
    for call in sample_calls(pipeline, Protocol(**SMALL).held_out()):
        with torch.no_grad():
            dense = pipeline.transformer(**call.kwargs, hidden_states=call.args[0]).sample
            own = other(**call.kwargs, hidden_states=call.args[0]).sample
        upper += (own - dense).double().square().sum().item()
        lower += dense.double().square().sum().item()
    assert value(row, "relative_error") == pytest.approx(upper / lower, rel=1e-6)
    parts = row["error_by_timestep"]
    assert sum(part["num_rows"] for part in parts) == 2 * SMALL["num_held_out"]
    # Two steps: in the third and in the eighth tenth of the way.
    assert [(part["timestep"], part["place"]) for part in parts] == [(500, 0.25), (0, 0.75)]
    assert all(0 < part["error"] < 1 for part in parts)


def test_the_dense_model_against_itself(tmp_path) -> None:
    dense, same = run("bundled", {"same": locate("bundled").root}, tmp_path)["models"]
    assert value(same, "relative_error") == 0.0
    assert value(same, "ssim") == pytest.approx(1.0, abs=1e-6)
    assert value(same, "psnr") == 100.0
    for metric in ("fid", "accuracy", "inception_score"):
        assert same["metrics"][metric] == dense["metrics"][metric]
    assert value(same, "sfid") == pytest.approx(0.0, abs=0.05)
    assert (value(same, "precision"), value(same, "recall")) == (1.0, 1.0)
    assert math.isfinite(value(dense, "fid"))
    assert 0 <= value(dense, "accuracy") <= 1
    for metric in ("relative_error", "ssim", "psnr", "sfid", "kid", "precision", "recall"):
        assert dense["metrics"][metric] is None
    assert same["sparsity_asked"] is None
    assert same["sparsity"] < 0.01  # a trained weight may be zero by itself


def test_the_batch_size_changes_no_number(tiny_pipeline, pruned, tmp_path) -> None:
    five, ten = (
        run(tiny_pipeline, {"much": pruned["much"]}, tmp_path / str(size), batch_size=size)
        for size in (5, 10)
    )
    for one, two in zip(five["models"], ten["models"], strict=True):
        assert one.keys() == two.keys() == KEYS
        assert one["sparsity"] == two["sparsity"]
        for metric in CATALOGUE:
            if one["metrics"][metric] is not None:
                assert value(one, metric) == pytest.approx(value(two, metric), rel=1e-3), metric


def test_two_runs_are_the_same_and_another_seed_is_not(tiny_pipeline, pruned, tmp_path) -> None:
    models = {"much": pruned["much"]}
    one, two, other = (
        run(tiny_pipeline, models, tmp_path / name, seed=seed)
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    )
    assert timeless(one) == timeless(two)
    assert one["gallery"] == two["gallery"]
    grids = [(tmp_path / name / "grid.png").read_bytes() for name in "ab"]
    assert grids[0] == grids[1]
    for metric in ("relative_error", "ssim"):
        assert value(other["models"][1], metric) != value(one["models"][1], metric)


def test_colour_images_have_no_fid_without_inception_and_no_accuracy(
    tiny_dit, tiny_stats, tmp_path
) -> None:
    folder = save_pipeline(tiny_dit(), tmp_path / "colour", num_colours=3)
    prune_checkpoint(locate(str(folder)), tmp_path / "half", {"any": tiny_stats}, build())
    results = run(folder, {"half": tmp_path / "half"}, tmp_path / "e")
    for row in results["models"]:
        assert (row["metrics"]["fid"], row["metrics"]["accuracy"]) == (None, None)
    assert results["protocol"]["feature_extractor"].startswith("not available: InceptionV3")
    assert results["metrics"]["fid"]["unavailable"].startswith("InceptionV3")
    assert "grey digits" in results["metrics"]["accuracy"]["unavailable"]
    assert value(results["models"][1], "ssim") < 1


def test_a_bare_denoiser_is_measured_like_its_pipeline(tiny_pipeline, pruned, tmp_path) -> None:
    whole = run(tiny_pipeline, {"much": pruned["much"]}, tmp_path / "a")
    bare = run(tiny_pipeline, {"much": pruned["much"] / "transformer"}, tmp_path / "b")
    assert timeless(whole) == timeless(bare)


def test_the_report_hears_of_everything(tiny_pipeline, pruned, tmp_path) -> None:
    heard: dict[str, tuple[int, int]] = {}

    def progress(what: str, done: int, total: int) -> None:
        assert done > heard.get(what, (0, 0))[0]
        heard[what] = (done, total)

    protocol = Protocol(**SMALL, batch_size=4)
    models = [("much", locate(str(pruned["much"])))]
    evaluate(locate(str(tiny_pipeline)), models, tmp_path, protocol, progress)
    assert heard == {
        "held-out calls": (1, 1), "images: dense": (10, 10), "images: much": (10, 10),
        "measuring": (2, 2),
    }  # fmt: skip


def test_labels_are_drawn_in_turn(tiny_pipeline, pruned, tmp_path) -> None:
    models = {"little": pruned["little"]}
    one = run(tiny_pipeline, models, tmp_path / "a", labels=(2,))
    two = run(tiny_pipeline, models, tmp_path / "b", labels=(3,))
    assert one["protocol"]["labels"] in ([2], (2,))
    assert value(one["models"][1], "ssim") != value(two["models"][1], "ssim")


@pytest.mark.parametrize("option", ["num_images", "num_held_out", "batch_size"])
def test_a_protocol_that_cannot_be(option) -> None:
    with pytest.raises(RecipeError, match=f"{option}=0: expected at least 1"):
        Protocol(**{option: 0})


def test_two_models_of_one_name_are_refused_and_nothing_is_written(
    tiny_pipeline, pruned, tmp_path
) -> None:
    with pytest.raises(RecipeError, match="would be called the same"):
        run(tiny_pipeline, {"dense": pruned["much"]}, tmp_path / "e")
    assert not (tmp_path / "e").exists()
