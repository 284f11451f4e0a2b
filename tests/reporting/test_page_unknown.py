"""What results do not know, or what was no number, stands on the page as such."""

from __future__ import annotations

from typing import Any

from ditprune.reporting import page
from ditprune.reporting.load import check
from invented_results import results


def render(content: dict[str, Any]) -> str:
    return page.render(check(content, "here"))


def points(content: dict[str, Any]) -> list[dict[str, Any]]:
    return [point for model in content["models"] for point in model["error_by_timestep"]]


def test_layers_of_a_folder_without_a_manifest() -> None:
    content = results()
    for target in content["models"][1]["targets"]:
        target |= {"granularity": None, "g_out": None}
    made = render(content)
    assert "None" not in made
    assert made.count("Who competed in these layers is not known") == 1
    assert made.count("transformer_blocks: weights removed (%)") == 2
    assert made.count("transformer_blocks: G_out and granularity") == 1
    assert "Who competed" not in render(results())


def test_a_denoiser_without_timesteps_has_its_errors_along_the_way() -> None:
    content = results()
    for point in points(content):
        point["timestep"] = None
    made = render(content)
    assert "<td>5.0</td><td>–</td><td>0.015</td><td>13</td>" in made
    assert "<td>5.0</td><td>950</td><td>0.015</td><td>13</td>" in render(results())
    assert "var(--series-1)" in made


def test_errors_that_are_no_numbers() -> None:
    content = results()
    for point in content["models"][1]["error_by_timestep"]:
        point["error"] = None
    made = render(content)
    assert "<td>5.0</td><td>950</td><td>–</td><td>13</td>" in made
    assert "No prediction is finite" not in made
    for point in points(content):
        point["error"] = None
    made = render(content)
    assert "No prediction is finite, so there is no error to draw." in made
    assert 'href="#timesteps"' in made


def test_the_commands_stand_in_their_order_with_what_they_need() -> None:
    content = results()
    content["models"][1] |= {
        "calibrate_command": "ditprune calibrate m -o stats.safetensors --prompts prompts.txt",
        "command": "ditprune prune m -o o --statistics stats.safetensors --recipe ditprune.json",
    }
    made = render(content)
    assert (
        "ditprune calibrate m -o stats.safetensors --prompts prompts.txt\n"
        "ditprune prune m -o o --statistics stats.safetensors --recipe ditprune.json</pre>"
    ) in made
    assert "ditprune.json lies beside this model" in made
    assert "prompts.txt: the prompts under statistics in ditprune.json" in made
    plain = render(results())
    assert "ditprune.json" not in plain
    assert "prompts.txt" not in plain


def test_an_evaluation_called_from_python_has_no_command() -> None:
    assert "These numbers" in render(results())
    made = render(results() | {"command": None})
    assert "These numbers" not in made
    assert "None" not in made
