"""The verdict follows from the numbers and their intervals, by rule."""

from __future__ import annotations

from typing import Any

import pytest

from ditprune.reporting.verdict import LEVELS, headline, judge, verdicts_of
from invented_results import results

FID = {"title": "FID", "better": "lower", "unit": "", "digits": 3, "against": "real"}
SSIM = {"title": "SSIM", "better": "higher", "unit": "", "digits": 3, "against": "dense"}
LPIPS = {**SSIM, "title": "LPIPS", "better": "lower"}
ACCURACY = {"title": "accuracy", "better": "higher", "unit": "", "digits": 3,
            "against": "condition"}  # fmt: skip


def one(value: float, low: float | None = None, high: float | None = None) -> dict[str, Any]:
    return {"value": value, "low": low, "high": high}


def verdict(metrics: dict[str, Any], own: dict[str, Any], dense: dict[str, Any]):
    return judge({"metrics": own}, {"metrics": dense}, metrics, 60)


def level(number: int) -> str:
    return LEVELS[number].format(images="60 images")


@pytest.mark.parametrize(
    ("fid", "ssim", "rank"),
    [
        (one(0.07, 0.06, 0.09), one(0.97, 0.96, 0.98), 0),
        (one(0.07, 0.06, 0.09), None, 0),
        (None, one(0.97), 1),
        (one(0.07, None, None), one(0.97), 1),
        # On the good side of the line, and not surely there.
        (one(0.07, 0.06, 0.09), one(0.91, 0.89, 0.93), 2),
        (None, one(0.91, 0.89, 0.93), 3),
        (one(0.07, 0.06, 0.09), one(0.5), 4),
        # What the page calls visible is never called close, though its interval reaches over.
        (one(0.07, 0.06, 0.09), one(0.8865, 0.86, 0.91), 4),
        (one(0.04, 0.03, 0.05), one(0.97), 5),
        (None, one(0.5), 6),
        (None, one(0.8865, 0.86, 0.91), 6),
        (None, None, 7),
        (one(0.2, 0.19, 0.21), one(0.97), 8),
        (one(0.2, 0.19, 0.21), None, 8),
        (one(0.2, 0.19, 0.21), one(0.5, 0.4, 0.6), 9),
        # A value below the line whose interval reaches over it is not called visibly worse.
        (one(0.2, 0.19, 0.21), one(0.89, 0.86, 0.92), 8),
    ],
)
def test_each_level(fid: Any, ssim: Any, rank: int) -> None:
    said = verdict(
        {"fid": FID, "ssim": SSIM}, {"fid": fid, "ssim": ssim},
        {"fid": one(0.08, 0.07, 0.1), "ssim": None},
    )  # fmt: skip
    assert (said.rank, said.level) == (rank, level(rank))
    assert said.text.startswith(level(rank))


def test_it_says_how_many_images_did_not_tell_them_apart() -> None:
    fid, content = {"fid": one(0.07, 0.06, 0.09)}, {"metrics": {"fid": one(0.08, 0.07, 0.1)}}
    said = [judge({"metrics": fid}, content, {"fid": FID}, n).level for n in (0, 1, 60, 5000)]
    ends = ("these images", "1 image", "60 images", "5,000 images")
    assert said == [f"not told apart from dense by {end}" for end in ends]


def test_sound_has_its_relative_error_told() -> None:
    metrics = {"relative_error": {**SSIM, "title": "relative error", "better": "lower"}}
    said = verdict(metrics, {"relative_error": one(0.02, 0.01, 0.03)}, {})
    assert said.text == "not judged: relative error of the predicted noise 0.020 [0.010, 0.030]"


def test_a_value_beyond_the_line_is_told() -> None:
    ssim = one(0.8865, 0.86, 0.91)
    said = verdict({"ssim": SSIM, "lpips": LPIPS}, {"ssim": ssim, "lpips": one(0.2)}, {})
    assert "same-seed SSIM 0.886 [0.860, 0.910], below 0.9; same-seed LPIPS" in said.text
    assert said.text.endswith("LPIPS 0.200, above 0.1")


def test_lpips_calls_a_difference_visible_too() -> None:
    metrics = {"lpips": LPIPS}
    assert verdict(metrics, {"lpips": one(0.3, 0.2, 0.4)}, {}).rank == 6
    assert verdict(metrics, {"lpips": one(0.12, 0.09, 0.2)}, {}).rank == 6
    assert verdict(metrics, {"lpips": one(0.09, 0.05, 0.12)}, {}).rank == 3
    assert verdict(metrics, {"lpips": one(0.05, 0.04, 0.09)}, {}).rank == 1


def test_a_number_better_than_dense_is_no_gain() -> None:
    found = verdict({"fid": FID}, {"fid": one(0.05, 0.04, 0.06)}, {"fid": one(0.08, 0.07, 0.1)})
    assert found.level == "told apart from dense by 60 images, though not as worse"
    assert "better than dense, no gain to count on" in found.text


def test_higher_is_better_where_it_is() -> None:
    dense = {"accuracy": one(0.99, 0.98, 0.995)}
    assert (
        verdict({"accuracy": ACCURACY}, {"accuracy": one(0.9, 0.88, 0.92)}, dense).level
        == (LEVELS[8])
    )


def test_images_that_are_not_finite_come_before_every_number() -> None:
    fid = {"fid": one(0.07, 0.06, 0.09)}
    whole, spoiled = {"metrics": fid}, {"metrics": fid, "num_spoiled": 1_200}
    assert judge(whole, whole | {"num_spoiled": 0}, {"fid": FID}).rank == 0
    assert judge(spoiled, whole, {"fid": FID}).text == (
        f"{LEVELS[9]}: 1,200 of its own images are not finite (NaN or Inf)"
    )
    for model in (whole, spoiled):
        assert judge(model, spoiled, {"fid": FID}).text == (
            f"{LEVELS[7]}: 1,200 of the dense model's images are not finite (NaN or Inf)"
        )


def test_a_metric_without_a_better_way_judges_nothing() -> None:
    metrics = {"fid": {**FID, "better": "none"}}
    found = verdict(metrics, {"fid": one(9, 8, 10)}, {"fid": one(0.08, 0.07, 0.1)})
    assert found.level == LEVELS[7]


def test_the_headline_names_each_model_once_best_first() -> None:
    verdicts = verdicts_of(results())
    assert headline(verdicts) == [
        ("not told apart from dense by 1,000 images", ["stw 50"]),
        ("visibly worse than dense", ["magnitude 50"]),
    ]
    assert "FID 0.655 against 0.083" in verdicts["magnitude 50"].text
    assert "same-seed SSIM 0.745 [0.735, 0.755], below 0.9" in verdicts["magnitude 50"].text
