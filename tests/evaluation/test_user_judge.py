"""A user's own judge: what it is given, what it may answer, and where its numbers are shown."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from ditprune.cli import console
from ditprune.cli.evaluate import show_results
from ditprune.denoiser.placement import Placement
from ditprune.errors import RecipeError
from ditprune.evaluation.catalogue import CATALOGUE, Metric
from ditprune.evaluation.drawing import Images
from ditprune.evaluation.evaluate import evaluate
from ditprune.evaluation.measure import Measured, measure_model
from ditprune.evaluation.metrics.interval import Interval, mean_interval, share_interval
from ditprune.evaluation.protocol import Measures
from ditprune.evaluation.results import Numbers, cautions_of
from ditprune.evaluation.tools import Tools, prepare_tools
from ditprune.evaluation.user_judge import UserJudge
from ditprune.reporting import plots
from ditprune.reporting.load import check
from ditprune.reporting.page import render
from testbeds.judge import SCORES
from testbeds.judge import judge as judge_scenes
from testbeds.scenes import captions, scene
from testbeds.scenes import render as render_scenes

SMALL: dict[str, Any] = {
    "num_images": 6, "num_inference_steps": 2, "guidance_scale": 1.5, "num_held_out": 4,
    "batch_size": 4, "metrics": ["ssim"],
}  # fmt: skip
NAME = "<b>$x$ [red]"


def brightness(images: Any, _conditions: Any) -> dict[str, Any]:
    return {NAME: images.mean((1, 2, 3)), "is bright": images.mean((1, 2, 3)) > 128}


@pytest.fixture(scope="module")
def evaluated(tiny_pipeline, tiny_dit, tmp_path_factory) -> tuple[dict[str, Any], list[Any]]:
    """Results with a judge, and everything that it was given."""
    given: list[Any] = []

    def judge(images: Any, conditions: Any) -> dict[str, Any]:
        given.append((images.copy(), conditions))
        answer = brightness(images, conditions)
        images[:] = 0  # what it does to its images is its own affair
        return answer

    judge.better = {NAME: "lower"}  # type: ignore[attr-defined]
    out = tmp_path_factory.mktemp("judge") / "e"
    results = evaluate(
        tiny_pipeline, {"other": tiny_dit(1)}, out, judge=judge, labels=[3, 1], **SMALL
    )
    assert json.loads((out / "results.json").read_text(encoding="utf-8")) == json.loads(
        json.dumps(results)
    )
    return results, given


def test_a_judge_is_given_images_and_conditions_batch_by_batch(evaluated) -> None:
    _, given = evaluated
    first, *batches = given
    assert [conditions for _, conditions in batches] == [[3, 1, 3, 1], [3, 1]] * 2
    assert first[1] == [3, 1, 3, 1]
    assert np.array_equal(first[0], batches[0][0])
    for images, conditions in given:
        assert images.shape == (len(conditions), 16, 16, 3)
        assert images.dtype == np.uint8
        assert all(type(condition) is int for condition in conditions)
        assert np.array_equal(images[..., 0], images[..., 2])  # one grey


def test_its_numbers_are_metrics_with_intervals(evaluated) -> None:
    results, (_, *batches) = evaluated
    assert list(results["metrics"]) == ["ssim", NAME, "is bright"]
    entry = results["metrics"][NAME]
    assert (entry["title"], entry["better"], entry["against"]) == (NAME, "lower", "condition")
    assert results["metrics"]["is bright"]["better"] == "higher"
    assert entry["note"].startswith("by the judge ")
    assert entry["note"].endswith(results["protocol"]["judge"])
    assert results["protocol"]["judge"].endswith("test_user_judge.evaluated.<locals>.judge")
    for row, pair in zip(results["models"], (batches[:2], batches[2:]), strict=True):
        images = np.concatenate([batch for batch, _ in pair])
        answer = brightness(images, None)
        mean, share = (answer[name].astype(float).tolist() for name in (NAME, "is bright"))
        assert row["metrics"][NAME] == vars(mean_interval(mean, 0))
        assert row["metrics"]["is bright"] == vars(share_interval(share))


def test_its_numbers_are_shown_and_its_names_are_escaped(evaluated, monkeypatch) -> None:
    results, _ = evaluated
    page = render(check(results, "results"))
    assert "<b>$x$" not in page
    assert page.count("&lt;b&gt;$x$ [red]") >= 3  # the table, the note and a plot
    plot = plots.quality(NAME, results["metrics"][NAME], results["models"])
    assert "&lt;b&gt;$x$ [red]" in plot  # no formula
    printed = Console(width=120, record=True, file=io.StringIO())
    monkeypatch.setattr(console, "_out", printed)
    show_results(results)
    text = printed.export_text()
    assert NAME in text.splitlines()[0]  # the head of the table
    assert f"{results['models'][0]['metrics'][NAME]['value']:.3f}" in text


def test_the_same_images_with_another_judge_have_its_numbers(
    tiny_pipeline, tiny_dit, tmp_path
) -> None:
    def run(judge: Any) -> Any:
        words = SMALL | {"images": tmp_path / "kept"}
        results = evaluate(tiny_pipeline, {"other": tiny_dit(1)}, tmp_path, judge=judge, **words)
        return results["models"][0]["metrics"]

    one = run(lambda images, _: {"size": [images.shape[1]] * len(images)})
    two = run(lambda images, _: {"size": [images.shape[1] * 2.0] * len(images)})
    assert (one["size"]["value"], two["size"]["value"]) == (16.0, 32.0)
    assert run(None).keys() == {"ssim"}


def alternating() -> Any:
    names = iter("abc")
    return lambda images, _: {next(names): [0.0] * len(images)}


@pytest.mark.parametrize(
    ("judge", "message"),
    [
        (lambda images, _: [0.0] * len(images), "expected a mapping from names to one number"),
        (lambda _images, _: {}, "gave {}, expected a mapping"),
        (lambda images, _: {"fid": [0.0] * len(images)}, "'fid', which is a metric of ditprune"),
        (lambda images, _: {"a\x1b": [0.0] * len(images)}, r"gave the name 'a\\x1b', expected pri"),
        (lambda images, _: {3: [0.0] * len(images)}, "gave the name 3, expected printable text"),
        (lambda _images, _: {"a": [0.0]}, r"a has the shape \[1\], expected \[4\], a number for"),
        (lambda _images, _: {"a": 1.0}, r"a has the shape \[\], expected \[4\]"),
        (lambda images, _: {"a": ["x"] * len(images)}, "a is .*, expected 4 numbers"),
        (lambda images, _: {"a": [math.inf] * len(images)}, "a holds Inf, expected finite"),
        (alternating(), "gave 'b' for one batch and 'a' for another; expected the same names"),
    ],
)
def test_an_answer_of_another_kind(judge, message) -> None:
    checked = UserJudge(judge)
    images = torch.zeros(4, 1, 2, 2, dtype=torch.uint8)
    with pytest.raises(RecipeError, match=message) as refused:
        [checked(images, [0, 1, 2, 3]) for _ in range(2)]
    assert "\n" not in str(refused.value)
    assert str(refused.value).startswith("judge test_user_judge.")


def test_a_wrong_answer_is_told_before_pruned_models_are_drawn(
    tiny_pipeline, tiny_dit, tmp_path
) -> None:
    heard: list[str] = []
    with pytest.raises(RecipeError, match="gave None, expected a mapping"):
        evaluate(
            tiny_pipeline, {"other": tiny_dit(1)}, tmp_path, judge=lambda *_: None,
            progress=lambda what, *_: heard.append(what), **SMALL,
        )  # fmt: skip
    assert "images: dense" in heard
    assert "images: other" not in heard


class Tidy:
    def __init__(self, better: Any) -> None:
        self.better = better

    def __call__(self, images: Any, _conditions: Any) -> dict[str, Any]:
        return {"mess": torch.ones(len(images))}


def test_which_way_is_better() -> None:
    images = torch.zeros(2, 3, 2, 2, dtype=torch.uint8)
    judge = UserJudge(Tidy({"mess": "lower"}))
    assert judge(images, ["a", "b"])["mess"].tolist() == [1.0, 1.0]
    assert judge.metrics["mess"].better == "lower"
    assert judge.name == "test_user_judge.Tidy"
    for better in ({"mess": "less"}, ["mess"]):
        with pytest.raises(RecipeError, match=r"attribute 'better' is .* 'higher' or 'lower'"):
            UserJudge(Tidy(better))
    with pytest.raises(RecipeError, match="attribute 'better' names 'other', expected some of"):
        UserJudge(Tidy({"other": "lower"}))(images, ["a", "b"])
    with pytest.raises(RecipeError, match=r"judge: is a .*, expected a function"):
        UserJudge("judge")  # type: ignore[arg-type]


def measured(folder: Path, pixels: Any, asked: list[str], tools: Tools, dense: Any) -> Measured:
    images = Images(folder, len(pixels), 8)
    for items in images.ranges:
        images.write(items, pixels[items.start : items.stop], 1.0)
    return measure_model(images, dense, (), asked, tools, 0)


def test_the_judge_of_the_test_beds_and_its_missing_numbers(tmp_path) -> None:
    """It gives NaN where a caption claims no relation; such items do not count."""
    indices = range(16)
    scenes = [scene(index, "held_out") for index in indices]
    pixels, asked = render_scenes(scenes, indices), [captions(each)[0] for each in scenes]
    judge = UserJudge(judge_scenes)
    tools = prepare_tools(Measures(("ssim",)), pixels, asked, Placement(), judge)
    dense = measured(tmp_path / "a", pixels, asked, tools, None)
    black = measured(tmp_path / "b", torch.zeros_like(pixels), asked, tools, dense)
    judge.check_alike("black", black.values, dense.values)
    assert list(tools.catalogue) == ["ssim", *SCORES]
    expected = judge_scenes(pixels.movedim(1, -1).numpy(), asked)
    for name in SCORES:
        assert dense.intervals[name].value == pytest.approx(np.nanmean(expected[name]))
    assert 0 < np.isnan(expected["relation"]).sum() < len(asked)
    assert black.intervals["object"].value == 0.0 < dense.intervals["object"].value
    black.values["relation"] = (math.nan, *black.values["relation"][1:])
    dense.values["relation"] = (1.0, *dense.values["relation"][1:])
    with pytest.raises(RecipeError, match=r"relation of image 0 is nan for black and 1\.0 for d"):
        judge.check_alike("black", black.values, dense.values)


def test_its_numbers_are_compared_item_by_item() -> None:
    """Intervals overlap since images differ; each image is a little worse."""
    catalogue = CATALOGUE | {"neat": Metric("neat", "higher", against="condition")}
    hard = [i / 10 for i in range(50)]
    dense = Numbers({"neat": Interval(2.45, 2.0, 2.9)}, {"neat": hard})
    worse = Numbers({"neat": Interval(2.44, 2.0, 2.9)}, {"neat": [x - 0.01 for x in hard]})
    mixed = [x + (0.5 if i % 2 else -0.52) for i, x in enumerate(hard)]
    unsure = Numbers({"neat": Interval(2.44, 2.0, 2.9)}, {"neat": mixed})
    for other, said in ((worse, []), (unsure, ["50 images cannot tell it from dense by neat"])):
        models = {"dense": dense, "own": other}
        assert cautions_of("own", models, 50, (64, 448), catalogue) == said
