"""Whole runs, from a pruned folder over its evaluation to the page: prompts, a pattern, a mask."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch

import pipeline_parts as parts
from ditprune.reporting.load import load
from folders import save_pipeline, tensors_on_disk
from tiny_pipelines import PIPELINES

# A warning of diffusers' DPM-Solver about its own use of numpy.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

SMALL = ["--num-images", 3, "--num-held-out", 2, "--num-inference-steps", 2, "--batch-size", 3]


@pytest.fixture
def done(ditprune) -> Any:
    """Runs a command that must succeed; what it prints."""

    def call(*args: object) -> str:
        code, out, err = ditprune(*args)
        assert code == 0, err
        return out

    return call


def told(place: Path) -> tuple[dict[str, Any], str]:
    """The pruned model in checked results, and the page made of them."""
    return load(place)["models"][1], (place / "report.html").read_text(encoding="utf-8")


def assert_makes_it_again(done, command: str, places: dict[str, Path], out: Path) -> None:
    """Run with these paths in place of its names, the last of them OUT, it gives the same bytes."""
    done(*(places.get(word, word) for word in shlex.split(command)[1:]))
    again = list(places.values())[-1]
    before, after = (tensors_on_disk(one / "transformer") for one in (out, again))
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_pipeline_of_prompts(done, tmp_path) -> None:
    model, out, place = tmp_path / "model", tmp_path / "half", tmp_path / "e"
    PIPELINES["PixArtSigmaPipeline"]().save_pretrained(model)
    clip = parts.save_clip(tmp_path / "clip")
    (tmp_path / "p.txt").write_text("a cat\ntwo <b>dogs</b>\n", encoding="utf-8")
    done("prune", model, "-o", out, "--saliency", "magnitude")
    drawn = ["--prompts", tmp_path / "p.txt", "--height", 32, "--width", 32, "--clip", clip,
             "--pipeline-option", "use_resolution_binning=false"]  # fmt: skip
    printed = done("evaluate", model, out, "-o", place, *SMALL, *drawn)
    assert "CLIP score" in printed
    assert "half: " in done("report", place)
    row, page = told(place)
    score = row["metrics"]["clip_score"]
    assert 0 <= score["low"] <= score["value"] <= score["high"] <= 1
    assert [one["condition"] for one in load(place)["gallery"]].count("a cat") == 2
    assert "a cat" in page
    assert "two &lt;b&gt;dogs&lt;/b&gt;" in page
    assert "<b>dogs" not in page
    assert "CLIP score" in page
    assert "InceptionV3" in page  # why there is no FID
    card = (out / "README.md").read_text(encoding="utf-8")
    assert "3 same-seed images" in card
    assert "CLIP score" in card
    done("verify", out)


def test_a_pattern(done, tiny_pipeline, statistics, tmp_path) -> None:
    out, place = tmp_path / "2in4", tmp_path / "e"
    done("prune", tiny_pipeline, "-o", out, "--statistics", statistics, "--pattern", "2:4")
    done("evaluate", tiny_pipeline, out, "-o", place, *SMALL)
    done("report", place)
    row, page = told(place)
    assert row["sparsity_asked"] == "2:4"
    assert row["sparsity"] == pytest.approx(0.5, abs=0.01)
    assert {one["granularity"] for one in row["targets"]} == {"2:4"}
    assert "&#34;pattern&#34;: &#34;2:4&#34;" in page
    assert page.count('title="2:4') + page.count(">2:4<") >= len(row["targets"])
    recipe = out / "transformer" / "ditprune.json"
    again = {
        "stats.safetensors": statistics, "ditprune.json": recipe, "2in4": tmp_path / "again",
    }  # fmt: skip
    assert_makes_it_again(done, row["command"], again, out)


def test_a_mask_of_another_model(done, tiny_dit, pruned_once, tmp_path) -> None:
    """What is told of it makes it again; the recipe of the mask's model would not."""
    tuned, mask = save_pipeline(tiny_dit(1), tmp_path / "tuned"), tmp_path / "m.safetensors"
    out, place = tmp_path / "masked", tmp_path / "e"
    done("mask", "extract", pruned_once, "-o", mask)
    done("mask", "apply", tuned, mask, "-o", out)
    done("evaluate", tuned, out, "-o", place, *SMALL)
    done("report", place)
    row, page = told(place)
    manifest = json.loads((out / "transformer" / "ditprune.json").read_text(encoding="utf-8"))
    assert row["recipe"] == manifest["recipe"]
    assert row["sparsity"] == pytest.approx(0.5, abs=0.01)
    assert row["metrics"]["relative_error"]["value"] > 0
    assert row["command"] == f"ditprune mask apply {tuned} mask.safetensors -o masked"
    assert row["command"] in page
    card = (out / "README.md").read_text(encoding="utf-8")
    assert "ditprune mask apply DENSE mask.safetensors -o OUT" in card
    assert "ditprune prune " not in card
    again = {"mask.safetensors": mask, "masked": tmp_path / "again"}
    assert_makes_it_again(done, row["command"], again, out)
    done("verify", out)
