"""ditprune report: from a folder with results.json to one file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from invented_results import results

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def evaluation(tmp_path: Path) -> Path:
    place = tmp_path / "evaluation"
    place.mkdir()
    (place / "results.json").write_text(json.dumps(results()), encoding="utf-8")
    return place


def test_the_page_lies_beside_the_results_and_is_made_again(
    evaluation: Path, ditprune: Run
) -> None:
    code, out, err = ditprune("report", evaluation)
    assert code == 0, err
    assert "stw 50: not told apart from dense by 1,000 images" in out
    assert "magnitude 50: visibly worse than dense" in out
    page = evaluation / "report.html"
    assert f"page: {page}" in out
    first = page.read_bytes()
    assert ditprune("report", evaluation / "results.json")[0] == 0
    assert page.read_bytes() == first
    assert {file.name for file in evaluation.iterdir()} == {"results.json", "report.html"}


def test_another_place(evaluation: Path, ditprune: Run, tmp_path: Path) -> None:
    assert ditprune("report", evaluation, "-o", tmp_path / "a.html")[0] == 0
    assert (tmp_path / "a.html").stat().st_size < 5_000_000


def test_a_file_that_is_no_page_of_ours_is_not_replaced(
    evaluation: Path, ditprune: Run, tmp_path: Path
) -> None:
    (tmp_path / "a.html").write_text("<!doctype html>\nmine", encoding="utf-8")
    code, _, err = ditprune("report", evaluation, "-o", tmp_path / "a.html")
    assert code == 2
    assert "a.html: exists; choose another name" in err
    assert (tmp_path / "a.html").read_text(encoding="utf-8") == "<!doctype html>\nmine"


def test_no_results(ditprune: Run, tmp_path: Path) -> None:
    code, _, err = ditprune("report", tmp_path)
    assert code == 2
    assert "results.json: no such file; expected the folder that `ditprune evaluate" in err
    assert list(tmp_path.iterdir()) == []


def test_names_do_not_write_to_the_terminal(evaluation: Path, ditprune: Run) -> None:
    text = json.dumps(results()).replace("stw 50", "a\\u001b[31m\\nb")
    (evaluation / "results.json").write_text(text, encoding="utf-8")
    code, out, _ = ditprune("report", evaluation)
    assert code == 0
    assert "\x1b" not in out
    assert "a\\x1b[31m\\nb: not told apart" in out


def test_from_pruning_to_the_card_and_the_page(ditprune: Run, tmp_path: Path) -> None:
    """What evaluate writes is what report and the card read."""
    out, place = tmp_path / "half", tmp_path / "e"
    assert ditprune("prune", "bundled", "-o", out, "--saliency", "magnitude")[0] == 0
    assert "Not measured yet" in (out / "README.md").read_text(encoding="utf-8")
    command = ["evaluate", "bundled", out, "-o", place, "--num-images", 6, "--num-held-out", 2,
               "--num-inference-steps", 1]  # fmt: skip
    code, _, err = ditprune(*command)
    assert code == 0, err
    text = (out / "README.md").read_text(encoding="utf-8")
    assert "6 same-seed images" in text
    assert (out / "ditprune.png").is_file()
    assert ditprune("verify", out)[0] == 0
    code, said, err = ditprune("report", place)
    assert code == 0, err
    assert "half: " in said
    assert "transformer_blocks: weights removed" in (place / "report.html").read_text("utf-8")


def test_a_pruned_folder_without_a_manifest(
    ditprune: Run, tiny_pipeline: Path, tiny_stats: Any, tmp_path: Path
) -> None:
    """As `prune_` and diffusers' own `save_pretrained` leave it, or another tool."""
    from diffusers import DiTPipeline

    from ditprune import prune_

    pipeline = DiTPipeline.from_pretrained(tiny_pipeline)
    prune_(pipeline.transformer, tiny_stats, sparsity=0.5)
    pipeline.save_pretrained(tmp_path / "half")
    command = ["evaluate", tiny_pipeline, tmp_path / "half", "-o", tmp_path / "e", "--num-images",
               4, "--num-held-out", 2, "--num-inference-steps", 1]  # fmt: skip
    code, _, err = ditprune(*command)
    assert code == 0, err
    code, said, err = ditprune("report", tmp_path / "e")
    assert code == 0, err
    assert "half: " in said
    page = (tmp_path / "e" / "report.html").read_text(encoding="utf-8")
    assert "transformer_blocks: weights removed (%)" in page
    assert "Who competed in these layers is not known" in page
    assert "No command is known for this folder." in page
    assert "None" not in page
