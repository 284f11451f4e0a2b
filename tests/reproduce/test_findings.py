"""What is said of the order follows from the numbers, in both directions."""

from __future__ import annotations

from typing import Any

import pytest

from ditprune.reproduce.findings import (
    conclusions_of_findings,
    conclusions_of_importance,
    conclusions_of_statistics,
    findings_of,
)
from ditprune.reproduce.studies import STUDIES

NAMES = ("magnitude", "Wanda", "DiT-Pruning")


def row(
    name: str, steps: int = 25, recipe: Any = "a recipe", num_spoiled: int = 0,
    **metrics: tuple[float, ...],
) -> Any:  # fmt: skip
    """A row of results.json with (value, low, high) of some metrics."""
    return {
        "name": name,
        "recipe": recipe,
        "num_spoiled": num_spoiled,
        "setting": {
            "sparsity": 0.5, "pattern": None, "num_inference_steps": steps, "guidance_scale": 1.5,
        },
        "metrics": {
            key: dict(zip(("value", "low", "high"), one, strict=True))
            for key, one in metrics.items()
        },
    }  # fmt: skip


def verdicts(study: str, rows: list[Any], values: list[Any] | None = None) -> dict[str, str]:
    found = findings_of(STUDIES[study], rows, values or [{}] * len(rows))
    return {f"{one.metric}: {one.claim}": one.verdict for one in found}


@pytest.mark.parametrize(
    ("fid", "expected"),
    [((1, 0.9, 1.1), "agrees"), ((2, 1.5, 2.5), "cannot tell"), ((5, 4.5, 5.5), "disagrees")],
)
def test_a_distance_is_compared_by_its_intervals(fid, expected) -> None:
    others = {"magnitude": (9.0, 8.0, 10.0), "Wanda": (3.0, 2.2, 4.0)}
    rows = [row(name, fid=one) for name, one in others.items()] + [row("DiT-Pruning", fid=fid)]
    found = verdicts("main", rows)
    assert found == {
        "fid: DiT-Pruning is better than magnitude": "agrees",
        "fid: DiT-Pruning is better than Wanda": expected,
    }


def test_higher_is_better_where_the_metric_says_so() -> None:
    rows = [
        row(name, ssim=(v, v - 0.01, v + 0.01))
        for name, v in zip(NAMES, (0.9, 0.5, 0.7), strict=True)
    ]
    assert list(verdicts("main", rows).values()) == ["disagrees", "agrees"]


@pytest.mark.parametrize("spoiled", [None, "Wanda", "dense"])
def test_images_that_are_not_finite_are_not_compared(spoiled) -> None:
    rows = [
        row(
            name, num_spoiled=3 if name == spoiled else 0, fid=(v, v - 0.1, v + 0.1),
            relative_error=(v, v - 0.1, v + 0.1), recipe=None if name == "dense" else "a recipe",
        )
        for name, v in zip(("dense", *NAMES), (0.0, 9.0, 5.0, 2.0), strict=True)
    ]  # fmt: skip
    compared = {None: set(NAMES[:2]), "Wanda": {"magnitude"}, "dense": set()}[spoiled]
    assert {key for key in verdicts("main", rows) if key.startswith("fid")} == {
        f"fid: DiT-Pruning is better than {name}" for name in compared
    }
    errors = [key for key in verdicts("main", rows) if key.startswith("relative_error")]
    assert len(errors) == 2


def test_a_dense_model_spoils_its_own_setting_only() -> None:
    rows = [
        row(name, steps, fid=(v, v - 0.1, v + 0.1), recipe=None if name == "dense" else "a recipe",
            num_spoiled=int(name == "dense" and steps == 10))
        for steps in (10, 25)
        for name, v in (("dense", 0.0), ("Wanda", 5.0), ("DiT-Pruning", 2.0))
    ]  # fmt: skip
    (finding,) = findings_of(STUDIES["main"], rows, [{}] * len(rows))
    assert "25 steps" in finding.setting


def test_means_over_the_same_items_are_compared_item_by_item() -> None:
    wide = (0.5, 0.0, 1.0)
    rows = [row("Wanda", ssim=wide), row("DiT-Pruning", ssim=(0.51, 0.0, 1.0))]
    assert list(verdicts("main", rows).values()) == ["cannot tell"]
    items = [i / 10 for i in range(11)]
    values = [{"ssim": items}, {"ssim": [one + 0.01 for one in items]}]
    assert list(verdicts("main", rows, values).values()) == ["agrees"]


def test_rows_of_other_settings_and_dense_ones_are_not_compared() -> None:
    rows = [
        row("Wanda", 10, fid=(3, 2, 4)), row("DiT-Pruning", 25, fid=(1, 0, 1)),
        row("DiT-Pruning", 10, None, fid=(1, 0, 1)),
    ]  # fmt: skip
    assert verdicts("main", rows) == {}
    assert "nothing can be said" in conclusions_of_findings(STUDIES["main"], [])[0]


def test_what_should_be_alike_is_where_intervals_overlap() -> None:
    rows = [row(f"{n} samples", fid=one) for n, one in
            {128: (3, 2, 4), 256: (3.5, 2.5, 4.5), 1024: (9, 8, 10)}.items()]  # fmt: skip
    study = STUDIES["calibration-size"]
    assert list(verdicts(study.name, rows).values()) == ["agrees", "disagrees"]
    (line,) = conclusions_of_findings(study, findings_of(study, rows, [{}] * 3))
    assert line.startswith("By FID 1 of 2 that should be alike lie apart: 1024 samples 9.000, ")
    (line,) = conclusions_of_findings(study, findings_of(study, rows[:2], [{}] * 2))
    assert line == "By FID the intervals overlap in all 1 comparisons, as they should."


def test_a_sure_but_small_difference_of_what_should_be_alike_is_none() -> None:
    """Item by item 1 % is sure; the intervals are the same."""
    rows = [row(f"{n} samples", ssim=(0.5, 0.4, 0.6)) for n in (128, 256)]
    items = [i / 10 for i in range(11)]
    values = [{"ssim": items}, {"ssim": [one - 0.01 for one in items]}]
    assert list(verdicts("calibration-size", rows, values).values()) == ["agrees"]


def test_sentences_count_and_name_the_contradictions() -> None:
    rows = [
        row(name, steps, fid=(v, v - 0.1, v + 0.1))
        for steps, values in {25: (3, 2, 1), 10: (1, 2, 3)}.items()
        for name, v in zip(NAMES, values, strict=True)
    ]
    said = conclusions_of_findings(STUDIES["main"], findings_of(STUDIES["main"], rows, [{}] * 6))
    (line,) = said
    assert line.startswith("By FID the order is the paper's in 2 of 4 comparisons; 2 the other way")
    assert "DiT-Pruning 3.000, magnitude 1.000 at 50 %, 10 steps, guidance 1.5" in line
    agreeing = findings_of(STUDIES["main"], rows[:3], [{}] * 3)
    assert conclusions_of_findings(STUDIES["main"], agreeing) == [
        "By FID the order is the paper's in all 2 comparisons."
    ]


@pytest.mark.parametrize(
    ("modulation", "word"),
    [
        ((2.0, 3.0), "agrees with"),
        ((0.05, 3.0), "agrees in part, 1 of 2"),
        ((0.05, 0.1), "disagrees"),
    ],
)
def test_modulation_lies_above_all_others_or_it_is_said(modulation, word) -> None:
    others = [{"role": "mlp", "g_out": 0.2}, {"role": "attention", "g_out": 0.01}]
    rows = [*others, *({"role": "modulation", "g_out": g} for g in modulation)]
    (said,) = conclusions_of_importance({"rows": rows})
    assert word in said
    (nothing,) = conclusions_of_importance({"rows": others})
    assert "no layers of adaLN" in nothing


@pytest.mark.parametrize(
    ("counts", "word"), [([1, 0, 5, 0], "agrees"), ([1, 5, 2, 0], "disagrees")]
)
def test_the_peak_of_the_weights_is_near_a_tenth_or_not(counts, word) -> None:
    histograms = {"edges": [1e-4, 5e-3, 4e-2, 0.2, 10], "counts": {"mlp": counts}}
    said = conclusions_of_statistics({"histograms": histograms, "rows": []})
    assert f": {word} with a peak near 1e-1" in said[0]
