"""`ditprune shrink`: what it prints, what it writes, and what it refuses."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

import ditprune as package
from ditprune.cli.shrink import read_words
from ditprune.cli.shrink_tables import show_shrunk
from ditprune.shrinking.outcome import ShrinkOutcome, ShrunkRank
from ditprune.shrinking.prices import Size
from ditprune.shrinking.recipe import ShrinkRecipe

WORDS = ("--modulation", "none", "--ratio", 0.25)


@pytest.fixture(scope="module")
def calls(tiny_pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from diffusers import DiTPipeline

    folder = tmp_path_factory.mktemp("calls") / "calls"
    pipe = DiTPipeline.from_pretrained(tiny_pipeline)
    package.sample(pipe, num_samples=4, num_inference_steps=2).save(folder)
    return folder


def test_a_folder_is_written_and_told(tiny_pipeline, calls, tmp_path, ditprune) -> None:
    given = ("--calibration-set", calls, *WORDS, "--exclude", "*.1.ff", "--max-shapes", 2)
    code, out, err = ditprune("shrink", tiny_pipeline, "-o", tmp_path / "out", *given)
    assert code == 0, err
    lines = out.splitlines()
    assert lines[0].split() == ["block", "heads", "neurons", "rank"]
    blocks = [line for line in lines if line.startswith("transformer_blocks.")]
    assert len(blocks) == 3
    assert re.search(r" \d+ → \d+ ", "\n".join(blocks))
    told = "\n".join(lines)
    assert re.search(r"removed 2[5-9].* % of the multiplications of heads and neurons", told)
    assert re.search(r"% of those of the whole denoiser\n", told)
    for what in ("MACs of a call", "parameters", "bytes"):
        assert re.search(rf"{what}: .* → .* \(−[\d.]+ %\)", told), what
    assert re.search(r"expected error of the predicted noise: [\d.e-]+\n", told)
    assert lines[-1] == f"shrunk model: {tmp_path / 'out'}"
    assert package.verify(tmp_path / "out") == []


def test_a_dry_run_shows_the_curve(tiny_pipeline, calls, tmp_path, ditprune) -> None:
    code, out, err = ditprune(
        "shrink", tiny_pipeline, "-o", tmp_path / "out", "--calibration-set", calls, *WORDS,
        "--dry-run",
    )  # fmt: skip
    assert code == 0, err
    rows = [line.split() for line in out.splitlines()]
    ratios = [float(row[0]) for row in rows if row and re.fullmatch(r"0(\.\d)?", row[0])]
    assert ratios == [0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8]
    errors = [float(row[1]) for row in rows[1:6]]
    assert errors == sorted(errors)
    assert re.search(r"as asked for: ratio 0\.2\d+, expected error", out)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (("--ratio", 0.3, "--fit", "1MB"), "--ratio 0.3 and --fit 1MB exclude each other"),
        (("--fit", "much"), "--fit 'much': expected a size such as 8GB"),
        (("--parts", "heads,ears"), "--parts 'ears' is unknown"),
        (("--max-shapes", "few"), "--max-shapes 'few': expected a whole number"),
        (("--modulation", "2"), "--modulation '2': expected auto, none, or the share"),
        (("--include", "x*", *WORDS), "--include 'x*' matches none of 6 attentions and MLPs"),
    ],
    ids=str,
)
def test_what_the_verb_refuses(given, told, tiny_pipeline, calls, tmp_path, refused) -> None:
    args = ("shrink", tiny_pipeline, "-o", tmp_path / "out", "--calibration-set", calls, *given)
    assert told in refused(*args, midway="--include" in given)


def test_ranks_that_differ_are_told(capsys) -> None:
    layers = {f"blocks.{n}.norm": ShrunkRank(8 + n, 100, 200, 1e-6) for n in range(2)}
    size = Size(100, 100, 400)

    def shown(ranks: dict[str, ShrunkRank], **words: Any) -> str:
        recipe = ShrinkRecipe(**words)
        show_shrunk(ShrinkOutcome(recipe, size, size, 0.3, 0.1, 0.1, {}, {}, ranks), "")
        return capsys.readouterr().out

    assert "ranks differ" in shown(layers)
    assert "ranks differ" not in shown(layers, max_shapes="none")
    assert "ranks differ" not in shown({"blocks.0.norm": layers["blocks.0.norm"]})


def test_every_word_of_a_recipe_is_an_option(ditprune) -> None:
    out = ditprune("shrink", "--help")[1]
    for part in fields(ShrinkRecipe):
        assert f"--{part.name.replace('_', '-')} " in out, part.name


def test_texts_become_words() -> None:
    texts: dict[str, Any] = {
        "parts": "heads, neurons", "multiple": "16", "max_shapes": "none", "modulation": "0.75",
        "fit": None, "include": (), "blocks": ("transformer=a.*",),
    }  # fmt: skip
    assert read_words(texts) == {
        "parts": ("heads", "neurons"), "multiple": 16, "max_shapes": "none", "modulation": "0.75",
        "blocks": {"transformer": ("a.*",)},
    }  # fmt: skip
    assert ShrinkRecipe(modulation="0.75", max_shapes="none").to_json()["max_shapes"] == "none"
