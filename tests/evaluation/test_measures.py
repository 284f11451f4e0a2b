"""Whole evaluations with other metrics: real images, prompts, a choice of names."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import pipeline_parts as parts
from ditprune.bundled import PIPELINE
from ditprune.checkpoints.locate import locate
from ditprune.errors import ModelError
from ditprune.evaluation.catalogue import CATALOGUE
from ditprune.evaluation.compare import compare as evaluate
from ditprune.evaluation.protocol import Measures, Protocol
from ditprune.method.words import build
from ditprune.pruning.loop import prune_checkpoint
from folders import edit_json
from tiny_pipelines import PIPELINES

# A warning of diffusers' DPM-Solver about its own use of numpy.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

SMALL: dict[str, Any] = {"num_images": 6, "num_inference_steps": 2, "num_held_out": 4}


def run(dense: Path, out: Path, measures: Measures, **options: Any) -> dict[str, Any]:
    pruned = out.parent / "pruned"
    if not pruned.exists():
        prune_checkpoint(locate(str(dense)), pruned, None, build(saliency="magnitude"))
    models = [("p", locate(str(pruned)))]
    protocol = Protocol(**SMALL, **options)
    return evaluate(locate(str(dense)), models, out, protocol, measures=measures)


@pytest.fixture(scope="module")
def of_prompts(tmp_path_factory) -> tuple[Path, dict[str, Any]]:
    """A pipeline of prompts measured with a CLIP of its own."""
    place = tmp_path_factory.mktemp("prompts")
    PIPELINES["PixArtSigmaPipeline"]().save_pretrained(place / "model")
    clip = parts.save_clip(place / "clip")
    results = run(
        place / "model", place / "e", Measures(clip=str(clip)), height=32, width=32,
        prompts=("a cat", "two dogs"), pipeline_options={"use_resolution_binning": False},
    )  # fmt: skip
    return place, results


def test_prompts_have_a_clip_score(of_prompts) -> None:
    _, results = of_prompts
    assert results["metrics"]["clip_score"]["unavailable"] is None
    for row in results["models"]:
        score = row["metrics"]["clip_score"]
        assert 0 <= score["low"] <= score["value"] <= score["high"] <= 1
    assert results["metrics"]["clip_score"]["against"] == "condition"
    assert {entry["condition"] for entry in results["gallery"]} == {"a cat", "two dogs"}
    assert results["protocol"]["prompts"] == ["a cat", "two dogs"]
    assert results["protocol"]["clip_model"] == "clip"
    assert results["protocol"]["versions"]["transformers"]


def test_what_is_not_available_is_listed_without_a_number(of_prompts) -> None:
    _, results = of_prompts
    for key in ("fid", "accuracy"):
        assert results["metrics"][key]["unavailable"]
        assert all(row["metrics"][key] is None for row in results["models"])
    assert results["protocol"]["reference"] is None


def test_costs_count_guidance_and_steps(of_prompts) -> None:
    """Guidance stacks two rows in a call; there are two steps."""
    place, results = of_prompts
    from ditprune.calls import Call
    from ditprune.denoiser.pipeline import load_denoiser
    from ditprune.evaluation.accounting import count_macs

    denoiser = load_denoiser(place / "model" / "transformer")
    dense, pruned = (row["accounting"] for row in results["models"])
    assert dense["macs_per_image"] == 2 * dense["macs_per_step"]
    # One row of 4 × 4 latents by hand: text of 300 tokens, as this pipeline pads it.
    side = 32 // 8
    row = {
        "hidden_states": torch.zeros(1, 4, side, side),
        "encoder_hidden_states": torch.zeros(1, 300, parts.TEXT_WIDTH),
        "encoder_attention_mask": torch.ones(1, 300),
        "timestep": torch.tensor([1]),
        "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
    }
    one = count_macs(denoiser, Call((), row), [])
    assert dense["macs_per_step"] == 2 * one.total
    assert pruned["macs_per_step"] == dense["macs_per_step"]
    assert pruned["macs_per_step_effective"] < 0.8 * pruned["macs_per_step"]
    assert pruned["num_parameters"] == dense["num_parameters"]
    assert pruned["num_nonzero"] < dense["num_nonzero"] <= dense["num_parameters"]
    assert dense["seconds_per_image"] > 0


def test_a_pruned_model_tells_its_recipe_and_its_targets(of_prompts) -> None:
    place, results = of_prompts
    dense, pruned = results["models"]
    assert (dense["recipe"], dense["command"], dense["targets"]) == (None, None, [])
    assert pruned["recipe"]["saliency"] == {"name": "magnitude"}
    assert pruned["command"] == f"ditprune prune {place / 'model'} -o p --recipe ditprune.json"
    claims = json.loads((place / "pruned" / "transformer" / "ditprune.json").read_text())
    assert [one["name"] for one in pruned["targets"]] == list(claims["targets"])
    one = next(t for t in pruned["targets"] if t["name"].endswith("attn1.to_q"))
    assert (one["role"], one["depth"]) == ("attn1.to_q", 0)
    assert one["shape"] == claims["targets"][one["name"]]["shape"]
    assert one["g_out"] == claims["targets"][one["name"]]["g_out"]
    assert one["granularity"] in ("layer", "channel")
    assert one["sparsity"] == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("change", ["g_out", "cag_threshold"])
def test_a_manifest_with_numbers_that_json_lacks_is_refused(change, of_prompts, tmp_path) -> None:
    place, _ = of_prompts
    folder = Path(shutil.copytree(place / "pruned", tmp_path / "pruned"))

    def spoil(claims: dict[str, Any]) -> None:
        held = claims["recipe"] if change == "cag_threshold" else next(
            iter(claims["targets"].values())
        )  # fmt: skip
        held[change] = float("nan")

    edit_json(folder / "transformer" / "ditprune.json", spoil)
    with pytest.raises(ModelError, match=r"ditprune\.json: cannot be read as JSON \(NaN"):
        run(place / "model", tmp_path / "e", Measures())
    assert not (tmp_path / "e").exists()


def test_only_what_is_named_is_measured_against_a_folder(tmp_path) -> None:
    (tmp_path / "real").mkdir()
    generator = torch.Generator().manual_seed(0)
    for i in range(5):
        pixels = torch.randint(0, 256, (40, 30), generator=generator, dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(tmp_path / "real" / f"{i}.png")
    names = ("fid", "sfid", "kid", "precision", "recall")
    measures = Measures(names, reference=tmp_path / "real")
    results = run(PIPELINE, tmp_path / "e", measures)
    assert tuple(results["metrics"]) == names
    assert results["protocol"]["reference"].startswith("5 images of real")
    for row in results["models"]:
        assert tuple(row["metrics"]) == names
        assert all(one is not None for one in row["metrics"].values())
    assert {one["against"] for one in results["metrics"].values()} == {"real"}


def test_one_image_has_no_number_of_features_and_no_interval(tmp_path) -> None:
    SMALL["num_images"] = 1
    try:
        results = run(PIPELINE, tmp_path / "e", Measures())
    finally:
        SMALL["num_images"] = 6
    dense, pruned = results["models"]
    assert dense["metrics"]["fid"] is None
    assert pruned["metrics"]["sfid"] is None
    assert pruned["metrics"]["ssim"]["low"] is None
    assert set(results["metrics"]) == set(CATALOGUE)
