"""The protocol as it is written down: what was left to the pipeline, and who looked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ditprune.checkpoints.locate import locate
from ditprune.cli.options import read_measures
from ditprune.errors import RecipeError
from ditprune.evaluation.compare import compare as evaluate
from ditprune.evaluation.protocol import Measures, Protocol
from ditprune.method.words import build
from ditprune.pruning.loop import prune_checkpoint
from ditprune.reporting.load import load
from ditprune.reporting.page import render


@pytest.fixture(scope="module")
def pruned(tiny_pipeline, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("protocol") / "pruned"
    prune_checkpoint(locate(str(tiny_pipeline)), out, None, build(saliency="magnitude"))
    return out


def run(dense: Path, pruned: Path, out: Path, **options: Any) -> dict[str, Any]:
    protocol = Protocol(**{"num_images": 2, "num_held_out": 1, **options})
    measures = Measures(("ssim",))
    return evaluate(locate(str(dense)), [("p", locate(str(pruned)))], out, protocol,
                    measures=measures)  # fmt: skip


def test_defaults_of_the_pipeline_are_written_down(tiny_pipeline, pruned, tmp_path) -> None:
    protocol = run(tiny_pipeline, pruned, tmp_path)["protocol"]
    assert (protocol["num_inference_steps"], protocol["guidance_scale"]) == (50, 4.0)
    assert (protocol["labels"], protocol["prompts"]) == ([0, 2], None)  # two of four
    assert protocol["versions"].keys() >= {"torch", "torchmetrics"}
    page = render(load(tmp_path))
    for word, value in (("num inference steps", 50), ("guidance scale", 4.0), ("labels", "0, 2")):
        assert f'<th scope="row">{word}</th><td class="text">{value}</td>' in page


def test_few_images_are_of_labels_from_everywhere(tiny_pipeline, pruned, tmp_path) -> None:
    steps = {"num_inference_steps": 1, "guidance_scale": 1.0}
    two = run(tiny_pipeline, pruned, tmp_path / "two", **steps)
    assert {one["condition"] for one in two["gallery"]} == {0, 2}
    five = run(tiny_pipeline, pruned, tmp_path / "five", **steps, num_images=5)
    assert five["protocol"]["labels"] == [0, 1, 2, 3]
    given = run(tiny_pipeline, pruned, tmp_path / "given", **steps, labels=(9, 7, 5, 3))
    assert given["protocol"]["labels"] == [9, 5]


@pytest.mark.parametrize(
    ("words", "match"),
    [
        ({"names": ()}, r"metrics: names none; expected some of relative_error, "),
        ({"names": ("ssim", "inception_score"), "reference": Path()},
         r"reference \.: no metric that metrics names uses it; .*\(fid, sfid, kid, "),
        ({"names": ("ssim",), "feature_extractor": "inception"}, "feature_extractor inception: "),
        ({"names": ("fid",), "clip": "someone/clip"}, r"clip someone/clip: .*\(clip_score\)"),
    ],
    ids=str,
)  # fmt: skip
def test_what_no_chosen_metric_uses_is_refused(words, match) -> None:
    with pytest.raises(RecipeError, match=match):
        Measures(**words)


@pytest.mark.parametrize("text", ["", ",", " , "])
def test_no_metric_is_refused(text) -> None:
    with pytest.raises(RecipeError, match="metrics: names none"):
        read_measures(text)


def test_what_a_chosen_metric_uses_is_taken() -> None:
    Measures(reference=Path(), feature_extractor="inception", clip="someone/clip")
    Measures(("inception_score",), feature_extractor="classifier")
    Measures(("recall", "clip_score"), reference=Path(), clip="someone/clip")
