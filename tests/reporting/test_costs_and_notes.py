"""No saving that nothing made, and each note once."""

from __future__ import annotations

from typing import Any

import pytest
from test_page import Tags, render

from ditprune.reporting.costs import cost_text
from ditprune.reporting.notes import metric_notes, told_of, unavailable_notes, warnings_of
from invented_results import results

STEP = {"dense_fp32_ms": 10.0, "dense_bf16_ms": 8.0, "sparse_fp32_ms": 5.0,
        "sparse_bf16_ms": None, "pays": True}  # fmt: skip


def bench(model: str = "runs/stw 50", **step: Any) -> dict[str, Any]:
    steps = {"transformer": {**STEP, **step}}
    return {
        "model": model, "device": "cpu", "steps": steps, "num_threads": 1,
        "instruction_set": "AVX2", "layers": [], "layers_together": STEP, "notes": [],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("times", "said"),
    [
        (None, "no time saved, since dense kernels ran"),
        (bench("magnitude 50"), "no time saved, since dense kernels ran"),
        (bench(), "1.60 times as fast where it runs sparse (cpu)"),
        (bench(sparse_fp32_ms=9), "no time saved where it runs sparse"),
        (bench(sparse_fp32_ms=None, reason="no calls"), "no whole call was timed sparse"),
        (bench(sparse_fp32_ms=0), "no whole call was timed sparse"),
    ],
)
def test_time_is_saved_only_where_it_was_measured_sparse(times: Any, said: str) -> None:
    dense, model, _ = results()["models"]
    dense["accounting"]["seconds_per_image"] = 1.0  # by chance: both ran dense kernels
    text = cost_text(model, dense, times)
    assert text == f"50 % of the target weights removed; 11.2 MB, the dense model's size; {said}"


def test_a_smaller_file_is_told_and_an_unknown_one_is_not() -> None:
    dense, model, _ = results()["models"]
    model["accounting"]["size_bytes"] = 6_200_000
    assert "; 6.2 MB (−44.6 %); " in cost_text(model, dense)
    model["accounting"]["size_bytes"] = None
    assert "MB" not in cost_text(model, dense)


def test_the_page_gives_no_percentage_of_time() -> None:
    content = results()
    for model in content["models"][1:]:
        model["accounting"]["seconds_per_image"] = 0.00984
    text = Tags(render(content)).words()
    assert "0.00984 s" in text
    assert "−20 %" not in text
    assert "magnitude 50: 50 % of the target weights removed; 11.2 MB, the dense" in text


def test_a_note_is_told_once_with_all_that_it_is_about() -> None:
    models = results()["models"]
    for model in models:
        model["warnings"] = ["60 images are few", f"of {model['name']} alone"]
    assert warnings_of(models)[0] == ("dense, stw 50, magnitude 50", "60 images are few")
    assert len(warnings_of(models)) == 4
    assert told_of(models) == []
    models[2]["told"] = models[1]["told"] = ["its refinement was dropped"]
    assert told_of(models) == [("stw 50, magnitude 50", "its refinement was dropped")]
    metrics = results()["metrics"]
    metrics["lpips"] = metrics["clip_score"] | {"title": "LPIPS"}
    assert [titles for titles, _ in unavailable_notes(metrics)] == ["CLIP score, LPIPS"]
    metrics["fid"]["note"] = metrics["accuracy"]["note"] = "of the classifier"
    assert metric_notes(metrics, models) == [("FID, accuracy", "of the classifier")]


def test_a_distance_below_zero_is_explained() -> None:
    content = results()
    content["metrics"]["kid"] = content["metrics"]["fid"] | {"title": "KID"}
    for model in content["models"]:
        model["metrics"]["kid"] = {"value": 0.0001, "low": -0.0002, "high": 0.0003}
    assert "a number below 0 is no better than 0" in Tags(render(content)).text
    for model in content["models"]:
        model["metrics"]["kid"] = {"value": 0.0001, "low": 0.0, "high": 0.0003}
    assert "below 0" not in "".join(
        text for _, text in metric_notes(content["metrics"], content["models"])
    )


def test_what_was_dropped_and_what_was_not_measured_stand_in_the_summary() -> None:
    content = results()
    content["models"][1]["told"] = ["its refinement was dropped"]
    text = Tags(render(content)).words()
    assert "Dropped or not reached stw 50: its refinement was dropped" in text
    assert "Values with 95 % intervals; not measured: CLIP score" in text
    content["models"][1]["told"] = ["stays dense: <script>alert(1)</script>"]
    assert "stays dense: <script>alert(1)</script>" in Tags(render(content)).text
