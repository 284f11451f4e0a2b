"""What stayed dense or was not reached is told in one wording by all that people read."""

from __future__ import annotations

import html
from pathlib import Path
from typing import Any

import pytest

import ditprune as api
from ditprune.reporting.told import facts_of, facts_of_denoisers
from ditprune.writing.files import read_manifest
from folders import edit_json

TOTALS = {"num_parameters": 1000, "sparsity": 0.5}
ASKED = {"num_asked": 8, "num_pruned": 8}
REFINED = {"is_taken": True, "error_before": 0.02, "error_after": 0.01, "unreached": []}
CLAIMS: dict[str, Any] = {"skipped": {}, "left_out": {}, "targets": {"a": ASKED}, "totals": TOTALS,
                          "recipe": {"sparsity": 0.5, "pattern": None}}  # fmt: skip


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({}, []),
        ({"recipe": {"sparsity": None, "pattern": "2:4"}}, []),
        ({"totals": TOTALS | {"sparsity": 0.497}}, []),
        (
            {"totals": TOTALS | {"sparsity": 0.47}},
            ["share not reached: 47 % of the target weights are removed, 50 % were asked for"],
        ),
        ({"recipe": {"sparsity": None, "pattern": "1:4"}}, ["share not reached: 50 % of"]),
        ({"totals": TOTALS | {"sparsity": 0.52}}, []),  # small groups round
        (
            {"targets": {"a": {"num_asked": 8, "num_pruned": 6}, "b": ASKED, "c": ASKED}},
            ["share not reached: a lost 2 weights fewer than asked for"],
        ),
        ({"skipped": {"a.b": "3 input channels"}}, ["stays dense: a.b (3 input channels)"]),
        (
            {"left_out": {"x": {"num_weights": 60, "reason": "no matrix"},
                          "y": {"num_weights": 40, "reason": "no matrix"}}},
            ["stays dense: x and 1 more, 100 weights (10.0% of the denoiser): no matrix"],
        ),
        ({"max_error": {"asked": 0.01, "measured": 0.009, "num_rows": 8}}, []),
        (
            {"max_error": {"asked": 0.01, "measured": 0.02, "num_rows": 8}},
            ["error not reached: 0.02 measured on 8 rows kept aside, ABOVE the 0.01 asked for"],
        ),
        ({"refined": REFINED}, []),
        (
            {"refined": REFINED | {"is_taken": False, "error_after": 0.03}},
            ["refinement dropped: every layer keeps what its reconstruction gave, since the "
             "relative error on rows kept aside was 0.02 before and 0.03 after"],
        ),
        (
            {"refined": REFINED | {"is_taken": False, "error_after": None, "unreached": ["a"]}},
            ["refinement dropped: "],
        ),
        (
            {"refined": REFINED | {"unreached": ["a.b", "c", "d"]}},
            ["not refined: a.b and 2 more, to which no gradient leads"],
        ),
    ],
)  # fmt: skip
def test_a_manifest_tells_what_was_not_reached(changed: Any, said: list[str]) -> None:
    lines = facts_of(CLAIMS | changed)
    assert len(lines) == len(said)
    assert all(line.startswith(start) for line, start in zip(lines, said, strict=True))


@pytest.fixture(scope="module")
def told(tiny_pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A pruned model whose embedders stay dense, and what its outcome says."""
    out = tmp_path_factory.mktemp("told") / "out"
    outcome = api.prune(tiny_pipeline, out, saliency="magnitude", sparsity=0.5)
    return out, outcome.told()


def test_outcome_manifest_card_console_and_page_say_the_same(
    told: Any, tiny_pipeline: Path, tmp_path: Path, ditprune: Any
) -> None:
    out, lines = told
    assert lines[0].startswith("stays dense: transformer_blocks.0.norm1.emb")
    assert facts_of(read_manifest(out / "transformer")) == lines
    code, printed, _ = ditprune("verify", out)
    assert code == 0
    assert all(line in printed for line in lines)
    copied = tmp_path / "again"
    _, printed, _ = ditprune("prune", tiny_pipeline, "-o", copied, "--saliency", "magnitude")
    assert all(line in printed for line in lines)
    _, printed, _ = ditprune(
        "evaluate", tiny_pipeline, out, "-o", tmp_path / "e", "--num-images", 2, "--metrics",
        "relative_error", "--num-inference-steps", 1, "--num-held-out", 2,
    )  # fmt: skip
    assert all(f"out: {line}" in printed for line in lines)
    card = (out / "README.md").read_text(encoding="utf-8").replace("\\", "")
    page = api.report(tmp_path / "e").read_text(encoding="utf-8")
    shown = html.unescape(page)
    assert all(f"- {line}" in html.unescape(card) and f"out: {line}" in shown for line in lines)


def test_a_manifest_that_cannot_be_read_tells_nothing_more(told: Any) -> None:
    folder = told[0] / "transformer"
    edit_json(folder / "ditprune.json", lambda claims: claims.update(left_out={"x": 3}))
    assert facts_of_denoisers({"transformer": folder, "none": folder.parent}) == []
