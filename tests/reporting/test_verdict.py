"""The verdict follows from the numbers and their intervals, by rule."""

from __future__ import annotations

from typing import Any

import pytest

from ditprune.reporting.verdict import LEVELS, headline, judge
from invented_results import results

FID = {"title": "FID", "better": "lower", "unit": "", "digits": 3, "against": "real"}
SSIM = {"title": "SSIM", "better": "higher", "unit": "", "digits": 3, "against": "dense"}
LPIPS = {**SSIM, "title": "LPIPS", "better": "lower"}
ACCURACY = {"title": "accuracy", "better": "higher", "unit": "", "digits": 3,
            "against": "condition"}  # fmt: skip


def one(value: float, low: float | None = None, high: float | None = None) -> dict[str, Any]:
    return {"value": value, "low": low, "high": high}


def verdict(metrics: dict[str, Any], own: dict[str, Any], dense: dict[str, Any]):
    return judge({"metrics": own}, {"metrics": dense}, metrics)


@pytest.mark.parametrize(
    ("fid", "ssim", "level"),
    [
        (one(0.07, 0.06, 0.09), one(0.97, 0.96, 0.98), 0),
        (None, one(0.97), 1),
        (one(0.07, None, None), one(0.97), 1),
        (one(0.07, 0.06, 0.09), one(0.5), 2),
        (None, one(0.5), 3),
        (None, None, 4),
        (one(0.2, 0.19, 0.21), one(0.97), 5),
        (one(0.2, 0.19, 0.21), None, 5),
        (one(0.2, 0.19, 0.21), one(0.5, 0.4, 0.6), 6),
        # A value below the line whose interval reaches over it is not called visible.
        (one(0.2, 0.19, 0.21), one(0.89, 0.86, 0.92), 5),
    ],
)
def test_each_level(fid: Any, ssim: Any, level: int) -> None:
    found = verdict(
        {"fid": FID, "ssim": SSIM}, {"fid": fid, "ssim": ssim},
        {"fid": one(0.08, 0.07, 0.1), "ssim": None},
    )  # fmt: skip
    assert found.level == LEVELS[level]
    assert found.text.startswith(LEVELS[level])


def test_lpips_calls_a_difference_visible_too() -> None:
    metrics = {"lpips": LPIPS}
    assert verdict(metrics, {"lpips": one(0.3, 0.2, 0.4)}, {}).level == LEVELS[3]
    assert verdict(metrics, {"lpips": one(0.12, 0.09, 0.2)}, {}).level == LEVELS[1]


def test_a_number_better_than_dense_is_no_gain() -> None:
    found = verdict({"fid": FID}, {"fid": one(0.05, 0.04, 0.06)}, {"fid": one(0.08, 0.07, 0.1)})
    assert found.level == LEVELS[0]
    assert "better than dense, no gain to count on" in found.text


def test_higher_is_better_where_it_is() -> None:
    dense = {"accuracy": one(0.99, 0.98, 0.995)}
    assert (
        verdict({"accuracy": ACCURACY}, {"accuracy": one(0.9, 0.88, 0.92)}, dense).level
        == (LEVELS[5])
    )


def test_images_that_are_not_finite_come_before_every_number() -> None:
    fid = {"fid": one(0.07, 0.06, 0.09)}
    whole, spoiled = {"metrics": fid}, {"metrics": fid, "num_spoiled": 1_200}
    assert judge(whole, whole | {"num_spoiled": 0}, {"fid": FID}).level == LEVELS[0]
    assert judge(spoiled, whole, {"fid": FID}).text == (
        f"{LEVELS[6]}: 1,200 of its own images are not finite (NaN or Inf)"
    )
    for model in (whole, spoiled):
        assert judge(model, spoiled, {"fid": FID}).text == (
            f"{LEVELS[4]}: 1,200 of the dense model's images are not finite (NaN or Inf)"
        )


def test_a_metric_without_a_better_way_judges_nothing() -> None:
    metrics = {"fid": {**FID, "better": "none"}}
    found = verdict(metrics, {"fid": one(9, 8, 10)}, {"fid": one(0.08, 0.07, 0.1)})
    assert found.level == LEVELS[4]


def test_the_headline_names_each_model_once_best_first() -> None:
    content = results()
    dense, *pruned = content["models"]
    verdicts = {m["name"]: judge(m, dense, content["metrics"]) for m in pruned}
    assert headline(verdicts) == [(LEVELS[0], ["stw 50"]), (LEVELS[6], ["magnitude 50"])]
    assert "FID 0.655 against 0.083" in verdicts["magnitude 50"].text
    assert "same-seed SSIM 0.745 [0.735, 0.755]" in verdicts["magnitude 50"].text
