"""ditprune reproduce: the words of the command line become a study."""

from __future__ import annotations

import json

import pytest

SMALL = ("--num-images", 2, "--num-held-out", 2, "--num-samples", 2, "--steps", 2)


def test_it_says_what_it_found_and_where_it_is(ditprune, tiny_pipeline, tmp_path) -> None:
    out = tmp_path / "r"
    code, said, err = ditprune(
        "reproduce", "main", tiny_pipeline, "-o", out, *SMALL, "--sparsities", "0.3,0.6"
    )
    assert code == 0, err
    results = json.loads((out / "main" / "results.json").read_text(encoding="utf-8"))
    shares = [row["setting"]["sparsity"] for row in results["rows"]]
    assert shares == [0.0, 0.3, 0.3, 0.3, 0.6, 0.6, 0.6]
    assert f"table: {out}/main/table.md" in said
    assert all(f"here:  {line}" in said for line in results["conclusions"])
    assert "--sparsities 0.3,0.6" in results["command"]


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["mian"], "STUDY 'mian': did you mean 'main'"),
        (["main", "--steps", "2,x"], "--steps '2,x': expected numbers with commas between"),
        (["main", "--steps", "2,2"], "--steps '2,2': names a number twice"),
        (["nm", "--sparsities", "0.5"], "--sparsities: the study 'nm' does not vary it"),
        (["main", "--steps", "0"], "--num-inference-steps 0: expected at least 1"),
        (["main", "--num-images", "0"], "--num-images 0: expected at least 1"),
    ],
)
def test_what_it_refuses(words, line, refused, tiny_pipeline, tmp_path) -> None:
    study, *options = words
    said = refused("reproduce", study, tiny_pipeline, "-o", tmp_path / "r", *options)
    assert line in said
