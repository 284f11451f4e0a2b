"""ditprune evaluate: the command it records, the table it prints, what an interrupt leaves."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from ditprune.cli import console
from ditprune.cli import evaluate as verb
from ditprune.evaluation.catalogue import CATALOGUE

SMALL = ["--num-images", 4, "--num-held-out", 2, "--num-inference-steps", 1, "--batch-size", 2]


def results_of(out: Path) -> dict[str, Any]:
    return json.loads((out / "results.json").read_text(encoding="utf-8"))


def test_the_recorded_command_gives_the_same_again(
    ditprune, tiny_pipeline, pruned, tmp_path
) -> None:
    options = ["--metrics", "relative_error,ssim,fid", "--labels", "0,2"]
    code, out, err = ditprune("evaluate", tiny_pipeline, pruned, "-o", tmp_path / "e", *SMALL,
                              *options)  # fmt: skip
    assert code == 0, err
    first = results_of(tmp_path / "e")
    words = shlex.split(first["command"])
    assert words[:2] == ["ditprune", "evaluate"]
    assert ditprune(*words[1:])[0] == 0
    again = results_of(tmp_path / "e")
    assert again["command"] == first["command"]
    assert again["protocol"] == first["protocol"]
    assert again["models"][1]["metrics"] == first["models"][1]["metrics"]
    assert list(first["metrics"]) == ["relative_error", "ssim", "fid"]
    assert "FID: not available: InceptionV3" in out


def test_all_numbers_are_printed_however_narrow_the_screen(
    ditprune, tmp_path, pruned, monkeypatch
) -> None:
    monkeypatch.setattr(console, "width", lambda: 50)
    out = tmp_path / "half"
    assert ditprune("prune", "bundled", "-o", out, "--saliency", "magnitude")[0] == 0
    code, printed, err = ditprune("evaluate", "bundled", out, "-o", tmp_path / "e", *SMALL)
    assert code == 0, err
    results = results_of(tmp_path / "e")
    metrics = results["models"][1]["metrics"]
    for key, found in metrics.items():
        if found is None:
            assert results["metrics"][key]["unavailable"]
            continue
        digits = CATALOGUE[key].digits
        assert f"{found['value']:.{digits}f}" in printed, key
        assert f"{found['low']:.{digits}f}–{found['high']:.{digits}f}" in printed, key
    for row in results["models"]:
        for warning in row["warnings"]:
            (line,) = [line for line in printed.splitlines() if line.endswith(f": {warning}")]
            assert row["name"] in line.removesuffix(f": {warning}").split(", ")
    assert "MACs a step without zeros" in printed
    assert "…" not in printed


def test_an_interrupt_says_how_to_go_on(
    ditprune, tiny_pipeline, pruned, tmp_path, monkeypatch
) -> None:
    command = ["evaluate", tiny_pipeline, pruned, "-o", tmp_path / "e", *SMALL]
    whole = verb.evaluate_models

    def stop(*args: Any, **words: Any) -> Any:
        def progress(what: str, done: int, _total: int) -> None:
            if (what, done) == ("images: dense", 2):
                raise KeyboardInterrupt

        return whole(*args, **words | {"progress": progress})

    monkeypatch.setattr(verb, "evaluate_models", stop)
    code, _, err = ditprune(*command)
    assert (code, err.splitlines()[-1]) == (130, "stopped; run the same command again to go on")
    assert len(list((tmp_path / "e").rglob("*.safetensors"))) == 1
    monkeypatch.setattr(verb, "evaluate_models", whole)
    assert ditprune(*command)[0] == 0


def test_a_folder_written_as_a_point_has_its_own_name(
    ditprune, tiny_pipeline, pruned, tmp_path, monkeypatch
) -> None:
    monkeypatch.chdir(pruned)
    out = tmp_path / "e"
    code, _, err = ditprune("evaluate", tiny_pipeline, ".", "-o", out, *SMALL, "--metrics", "ssim")
    assert code == 0, err
    assert results_of(out)["models"][1]["name"] == pruned.name


@pytest.mark.parametrize(
    ("args", "match"),
    [
        (["--metrics", "fidd"], "--metrics fidd: did you mean"),
        (["--feature-extractor", "vgg"], "--feature-extractor vgg: no such file"),
        (["--reference", "nowhere"], "--reference nowhere: no such folder"),
        (
            ["--metrics", "ssim", "--reference", "."],
            "--reference .: no metric that",
        ),
        (["--metrics", ","], "--metrics: names none"),
    ],
    ids=str,
)
def test_what_cannot_be_measured_is_refused(
    args, match, refused, tiny_pipeline, pruned, tmp_path
) -> None:
    assert match in refused("evaluate", tiny_pipeline, pruned, "-o", tmp_path / "e", *args)
