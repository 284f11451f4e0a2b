"""Results that the page could not tell the truth from are refused, with the place in the file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ditprune.errors import ResultsError
from ditprune.reporting.load import check, load
from invented_results import results


def at(content: Any, path: str) -> tuple[Any, str | int]:
    """The container and the key that a path such as `models.1.name` leads to."""
    *before, last = path.split(".")
    for step in before:
        content = content[int(step)] if isinstance(content, list) else content[step]
    return content, int(last) if isinstance(content, list) else last


def test_a_folder_and_its_file_are_read(tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    file.write_text(json.dumps(results()), encoding="utf-8")
    assert load(tmp_path) == load(file) == results()


def test_a_later_key_does_no_harm() -> None:
    content = results() | {"bench": None, "later": 1}
    assert check(content, "here") == content


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "no such file"),
        ("{", "cannot be read as JSON"),
        ("[]", "holds list, expected a JSON object"),
        ('{"format": NaN}', "NaN is no number of JSON"),
        ('{"format": 1}', "format is 1, expected 2"),
        ("[" * 100_000, "cannot be read as JSON"),
        ('{"format": ' + "9" * 400 + "}", "an integer has 400 digits"),
        (r'{"command": "\ud800"}', "half of a character"),
    ],
)
def test_what_is_no_results_file(text: str | None, said: str, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "results.json").write_text(text, encoding="utf-8")
    with pytest.raises(ResultsError, match=r"results\.json") as refusal:
        load(tmp_path)
    assert said in str(refusal.value)
    assert "ditprune evaluate" in str(refusal.value)


@pytest.mark.parametrize(
    ("path", "value", "expected"),
    [
        ("metrics.fid.better", "smaller", "lower or higher or none"),
        ("metrics.fid.digits", "3", "a whole number"),
        ("metrics.fid.digits", -1, "a whole number of digits, 0 to 12"),
        ("metrics.fid.digits", 5e8, "a whole number of digits, 0 to 12"),
        ("metrics.fid.digits", 2.5, "a whole number"),
        ("models", [], "'dense' first"),
        ("models.0.name", "other", "'dense' first"),
        ("models.2.name", "stw 50", "names that differ"),
        ("models.1.sparsity", True, "a number"),
        ("models.1.metrics.fid.value", None, "a number"),
        ("models.1.metrics.fid.low", float("inf"), "a number"),
        ("models.1.error_by_timestep", None, "a list"),
        ("models.1.error_by_timestep.0.error", "none", "a number"),
        ("models.1.error_by_timestep.0.timestep", [500], "a number"),
        ("models.1.calibrate_command", 3, "text"),
        ("models.1.targets.0.role", 3, "text"),
        ("models.1.targets.0.granularity", 3, "text"),
        ("gallery.0.images.dense", "https://example.org/a.png", "a data:image"),
        ("gallery.0.images.stw 50", 'data:image/png;base64,AA" onerror="x', "a data:image"),
        ("bench", {}, "to be there"),
    ],
)
def test_a_wrong_value_is_named_with_its_place(path: str, value: Any, expected: str) -> None:
    content = results()
    container, key = at(content, path)
    container[key] = value
    with pytest.raises(ResultsError, match=r"^here: ") as refusal:
        check(content, "here")
    assert expected in str(refusal.value)
    assert path.split(".")[0] in str(refusal.value)


def test_a_call_that_was_timed_has_times_and_another_a_reason() -> None:
    keys = ("dense_fp32_ms", "dense_bf16_ms", "sparse_fp32_ms", "sparse_bf16_ms")
    times = {**dict.fromkeys(keys), "pays": False}
    bench: dict[str, Any] = {
        "model": "a", "device": "cpu", "num_threads": 1, "instruction_set": "AVX2", "layers": [],
        "layers_together": times, "steps": {"a": times, "b": {"reason": "no calls"}}, "notes": [],
    }  # fmt: skip
    check(results() | {"bench": bench}, "here")
    bench["steps"]["c"] = {}
    with pytest.raises(
        ResultsError, match=r"bench.steps.c is \{\}, expected times of a whole call"
    ):
        check(results() | {"bench": bench}, "here")


@pytest.mark.parametrize(
    "path",
    [
        "models.1.targets.0.granularity", "models.1.targets.0.g_out", "models.1.command",
        "command", "models.1.error_by_timestep.0.timestep", "models.1.error_by_timestep.0.error",
        "models.1.metrics.fid", "models.1.accounting.macs_per_step",
    ],
)  # fmt: skip
def test_what_evaluate_does_not_know_is_null(path: str) -> None:
    content = results()
    container, key = at(content, path)
    container[key] = None
    assert check(content, "here") == content


@pytest.mark.parametrize(
    "path", ["command", "models.1.accounting", "models.1.targets.0.g_out", "metrics.fid.note"]
)
def test_what_is_missing_is_named(path: str) -> None:
    content = results()
    container, key = at(content, path)
    del container[key]
    with pytest.raises(ResultsError, match="expected to be there") as refusal:
        check(content, "here")
    assert str(key) in str(refusal.value)


def test_a_sample_without_its_dense_image() -> None:
    content = results()
    del content["gallery"][1]["images"]["dense"]
    with pytest.raises(ResultsError, match=r"gallery\[1\].images"):
        check(content, "here")
