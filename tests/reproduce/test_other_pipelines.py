"""Studies of a pipeline of prompts, and of one with two denoisers that draws videos."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import pipeline_parts as parts
from ditprune.checkpoints.locate import locate
from ditprune.errors import RecipeError, StatisticsError, TargetError
from ditprune.evaluation import drawing
from ditprune.evaluation.protocol import Measures
from ditprune.reproduce.rows import Options
from ditprune.reproduce.run import reproduce_study
from tiny_pipelines import PIPELINES, SMALL_VIDEO

# A warning of diffusers' DPM-Solver about its own use of numpy.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

PROMPTS = ("a cat", "two dogs")
OF_IMAGES: dict[str, Any] = {
    "prompts": PROMPTS, "height": 32, "width": 32, "steps": (2,), "num_samples": 2,
    "pipeline_options": {"use_resolution_binning": False},
}  # fmt: skip
OF_VIDEOS: dict[str, Any] = {
    "prompts": PROMPTS, "height": 32, "width": 32, "steps": (2,), "num_samples": 2,
    "pipeline_options": {"num_frames": SMALL_VIDEO["num_frames"]},
}  # fmt: skip
TWO = ("transformer", "transformer_2")


@pytest.fixture(scope="module")
def pixart(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("prompts") / "pixart"
    PIPELINES["PixArtSigmaPipeline"]().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def wan(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("videos") / "wan"
    PIPELINES["WanPipeline, two denoisers"]().save_pretrained(folder)
    return folder


def run(study: str, model: Path, out: Path, measures: Measures | None = None, **options: Any):
    (results,) = reproduce_study(
        study, locate(str(model)), out, Options(**options), measures
    ).values()
    return results


def test_a_study_of_prompts(pixart, tmp_path, monkeypatch) -> None:
    asked: list[str] = []
    draw = drawing.draw

    def listen(pipeline: Any, batch: list[str], *args: Any, **words: Any) -> Any:
        asked.extend(batch)
        return draw(pipeline, batch, *args, **words)

    monkeypatch.setattr(drawing, "draw", listen)
    clip = parts.save_clip(tmp_path / "clip")
    names = ("relative_error", "ssim", "fid", "clip_score")
    results = run(
        "ablation", pixart, tmp_path / "out", Measures(names, clip=str(clip)), **OF_IMAGES,
        num_images=3, num_held_out=2, batch_size=2,
    )  # fmt: skip
    assert [row["name"] for row in results["rows"]] == ["dense", "Wanda", "+ STW", "+ STW + CAG"]
    assert asked == ["a cat", "two dogs", "a cat"] * 4
    errors = [row["metrics"]["relative_error"]["value"] for row in results["rows"][1:]]
    assert len(set(errors)) == 3
    for row in results["rows"]:
        score = row["metrics"]["clip_score"]
        assert 0 <= score["low"] <= score["value"] <= score["high"] <= 1
        assert row["setting"]["num_inference_steps"] == 2
        assert row["setting"]["guidance_scale"] == 4.5  # the pipeline's own
    assert tuple(results["protocol"]["prompts"]) == PROMPTS
    assert results["protocol"]["pipeline"] == "PixArtSigmaPipeline"
    table = (tmp_path / "out" / "ablation" / "table.md").read_text(encoding="utf-8")
    assert "| method | removed | relative error ↓ | SSIM ↑ | CLIP score ↑ |" in table
    assert "FID: not available: InceptionV3" in table
    assert "- prompts: a cat, two dogs" in table
    assert (tmp_path / "out" / "ablation" / "ablation.svg").is_file()


@pytest.mark.parametrize(
    ("pipeline", "options", "denoisers"),
    [("pixart", OF_IMAGES, ("",)), ("wan", OF_VIDEOS, TWO)],
    ids=["prompts", "two denoisers"],
)
def test_studies_that_draw_nothing(pipeline, options, denoisers, request, tmp_path) -> None:
    model = request.getfixturevalue(pipeline)
    prefixes = [f"{name}." if name else "" for name in denoisers]
    sizes = run("statistics", model, tmp_path, **options)
    found = run("importance", model, tmp_path, **options)
    own = len(sizes["rows"]) // len(denoisers)
    layers = [row["layer"].removeprefix(prefixes[0]) for row in sizes["rows"][:own]]
    assert "attn1.to_q" in layers
    for results in (sizes, found):
        rows = results["rows"]
        assert len({row["name"] for row in rows}) == len(rows) == own * len(denoisers)
        for number, prefix in enumerate(prefixes):
            mine = rows[own * number : own * (number + 1)]
            assert all(row["name"].startswith(f"{prefix}") for row in mine)
            assert [row["layer"] for row in mine] == [f"{prefix}{layer}" for layer in layers]
    assert all(row["input_mean"] > 0 for row in sizes["rows"])
    assert all(row["g_out"] > 0 for row in found["rows"])
    kinds = {(row["name"].split(".")[0] if len(denoisers) > 1 else "", row["role"])
             for row in found["rows"]}  # fmt: skip
    assert len(found["figures"]) == len(set(found["figures"])) == len(kinds)
    for study, results in (("statistics", sizes), ("importance", found)):
        table = (tmp_path / study / "table.md").read_text(encoding="utf-8")
        for name in dict.fromkeys(row["layer"] for row in results["rows"]):
            assert table.count(f"| `{name}` |") == 1
        assert all((tmp_path / study / figure).is_file() for figure in results["figures"])
    if len(denoisers) > 1:
        means = [[row["input_mean"] for row in sizes["rows"]][own * i : own * (i + 1)]
                 for i in range(2)]  # fmt: skip
        assert means[0] != means[1]  # each saw its own calls


def test_a_layer_of_one_denoiser_of_two_is_asked_for_as_its_row_names_it(wan, tmp_path) -> None:
    asked = ("transformer_2.blocks.0.attn1.to_q",)
    results = run("importance", wan, tmp_path, **OF_VIDEOS, layers=asked)
    assert results["figures"] == [f"map-{asked[0]}.svg"]
    both = run("importance", wan, tmp_path, **OF_VIDEOS, layers=("blocks.0.attn1.to_q",))
    assert both["figures"] == [f"map-{name}.blocks.0.attn1.to_q.svg" for name in TWO]


def never(*_args: Any, **_words: Any) -> Any:
    raise AssertionError("worked before it refused")


def test_what_asks_for_no_layer_is_refused_before_sampling(wan, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("ditprune.calibration.collect.sample_unit", never)
    with pytest.raises(TargetError, match=r"include='\*\.nothing' matches none of"):
        run("importance", wan, tmp_path / "out", **OF_VIDEOS, layers=("*.nothing",))
    assert not (tmp_path / "out").exists()


def test_a_denoiser_that_no_sample_reaches_is_named(wan, tmp_path) -> None:
    with pytest.raises(StatisticsError, match="no calibration call reached its transformer;"):
        run("importance", wan, tmp_path / "out", **{**OF_VIDEOS, "num_samples": 1})


def test_videos_are_refused_before_any_work(wan, tmp_path, monkeypatch) -> None:
    model, out = locate(str(wan)), tmp_path / "out"
    monkeypatch.setattr("ditprune.reproduce.workbench.load_pipeline", never)
    match = "wan: draws frames, expected images to compare"
    for study in ("ablation", "all"):
        with pytest.raises(RecipeError, match=match):
            reproduce_study(study, model, out, Options(**OF_VIDEOS))
    assert not out.exists()
