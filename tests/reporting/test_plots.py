"""Plots are inline SVG with axes and units, in the page's colours only."""

from __future__ import annotations

import re
from typing import Any
from xml.etree import ElementTree

from ditprune.reporting import plots
from invented_results import results

HOSTILE = "FID $\\frac{1}{0}$ <script>alert(1)</script> \"' 数 \U0001f600"


def texts(svg: str) -> list[str]:
    return [element.text or "" for element in ElementTree.fromstring(svg).iter() if
            element.tag.endswith("text")]  # fmt: skip


def quality(**changes: Any) -> str:
    content = results()
    return plots.quality("fid", {**content["metrics"]["fid"], **changes}, content["models"])


def test_axes_have_names_and_units() -> None:
    assert "target weights removed (%)" in texts(quality())
    assert "FID (dB)" in texts(quality(unit="dB"))
    steps = texts(plots.timesteps(results()["models"]))
    assert {"way from noise to image (%)", "relative error"} <= set(steps)


def test_every_colour_is_a_variable_of_the_page() -> None:
    for svg in (quality(), plots.timesteps(results()["models"])):
        assert not re.search(r"(fill|stroke): *(#|rgb|black|white)", svg)
        assert "var(--series-0)" in svg
        assert "currentColor" in svg
    assert "var(--faint)" in quality()


def test_it_scales_and_says_nothing_by_itself() -> None:
    root = ElementTree.fromstring(quality())
    assert root.get("viewBox")
    assert root.get("width") is None
    assert root.get("height") is None
    assert root.get("aria-hidden") == "true"
    assert "<style" not in quality()


def test_a_title_is_text_whatever_stands_in_it() -> None:
    svg = quality(title=HOSTILE)
    assert HOSTILE in texts(svg)
    assert "<script" not in svg


def test_ids_are_those_of_one_plot() -> None:
    content = results()
    metrics = content["metrics"]
    svgs = [plots.quality(key, metrics[key], content["models"]) for key in ("fid", "ssim")]
    ids = [set(re.findall(r' id="([^"]+)"', svg)) for svg in svgs]
    assert ids[0]
    assert not ids[0] & ids[1]


def test_the_same_results_give_the_same_plot() -> None:
    assert quality() == quality()


def test_no_interval_is_no_bar_and_a_value_outside_its_interval_is_drawn() -> None:
    content = results()
    own = content["models"][1]["metrics"]
    whole = plots.quality("fid", content["metrics"]["fid"], content["models"])
    own["fid"] = {"value": 0.072, "low": None, "high": None}
    bare = plots.quality("fid", content["metrics"]["fid"], content["models"])
    assert len(bare) < len(whole)
    own["fid"] = {"value": 0.072, "low": 0.08, "high": 0.09}  # a bootstrap of FID lies above it
    assert plots.quality("fid", content["metrics"]["fid"], content["models"])


def test_errors_over_decades_get_a_logarithmic_axis() -> None:
    content = results()
    for number, point in enumerate(content["models"][1]["error_by_timestep"]):
        point["error"] = 10.0 ** -(number % 5)
    labels = texts(plots.timesteps(content["models"]))
    assert {"0.0001", "0.001", "0.01", "0.1", "1"} <= set(labels)
    assert not any("$" in text for text in labels)


def test_an_error_that_is_no_number_is_a_gap() -> None:
    content = results()
    points = content["models"][1]["error_by_timestep"]
    whole = plots.timesteps(content["models"])
    points[4]["error"] = None
    assert len(plots.timesteps(content["models"])) < len(whole)
    for model in content["models"]:
        for point in model["error_by_timestep"]:
            point["error"] = None
    assert plots.timesteps(content["models"]) == ""
