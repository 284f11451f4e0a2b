"""The command that makes a model again: it gives the recipe that the manifest holds."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest
import torch

from ditprune.calibration.placement import Placement, parse_size
from ditprune.cli.evaluate import evaluate
from ditprune.cli.options import read_labels, read_measures, read_pipeline_options, read_recipe
from ditprune.cli.prune import prune
from ditprune.cli.reproduce import reproduce
from ditprune.evaluation.commands import evaluate_command, options_of, prune_command
from ditprune.evaluation.protocol import Measures, Protocol
from ditprune.recipe import build
from ditprune.reproduce.rows import Options


@pytest.mark.parametrize(
    "words",
    [
        {},
        {"saliency": "magnitude", "granularity": "layer", "sparsity": 0.3},
        {"saliency": "power", "weight_power": 2.0, "activation_power": 0.5},
        {"pattern": "2:4", "saliency": "wanda"},
        {"include": ("*.attn1.*", "*.ff.*"), "exclude": ("*.to_q",), "auxiliary": True},
        {"preset": "best"},
        {"cag_threshold": "auto"},
        {"allocation": "owl"},
    ],
    ids=str,
)
def test_the_command_gives_the_recipe(words: dict[str, Any]) -> None:
    recipe = build(**words).to_json()
    line = shlex.split(prune_command("some model", "out", recipe, needs_statistics=True))
    assert line[:6] == ["ditprune", "prune", "some model", "-o", "out", "--statistics"]
    context = prune.make_context("prune", line[2:])
    fields = {
        name: value for name, value in context.params.items()
        if name not in ("model", "out", "statistics", "set_folder", "device", "dry_run",
                        "overwrite")
    }  # fmt: skip
    assert read_recipe(**fields).to_json() == recipe
    assert (context.params["set_folder"] is not None) == build(**words).needs_calls


def test_what_needs_no_statistics_names_none() -> None:
    recipe = build(saliency="magnitude").to_json()
    assert "--statistics" not in prune_command("m", "o", recipe, needs_statistics=False)


def test_the_command_of_an_evaluation_gives_its_options_again() -> None:
    protocol = Protocol(
        7, 3, 5, 2.5, (4, 1), num_held_out=9, batch_size=2, height=32, width=64,
        pipeline_options={"a": True, "b": "two words", "c": 0.5},
    )  # fmt: skip
    measures = Measures(("ssim", "fid", "clip_score"), "classifier", Path(), "some/clip", Path("i"))
    place = Placement("mps", torch.bfloat16, 12_345_678)
    words = evaluate_command("dense", ["p", "a q"], Path("out"), protocol, measures, place)
    given = evaluate.make_context("evaluate", shlex.split(words)[2:]).params
    assert (given["dense"], given["pruned"], given["out"]) == ("dense", ("p", "a q"), Path("out"))
    own = {
        name: given[name]
        for name in ("num_images", "seed", "num_inference_steps", "guidance_scale", "num_held_out",
                     "batch_size", "height", "width")
    }  # fmt: skip
    options = read_pipeline_options(given["pipeline_options"])
    labels = read_labels(given["labels"])
    assert Protocol(labels=labels, pipeline_options=options, **own) == protocol
    eyes = {n: given[n] for n in ("feature_extractor", "reference", "clip", "images")}
    assert read_measures(given["metrics"], **eyes) == measures
    assert (given["device"], given["dtype"]) == ("mps", "bfloat16")
    assert parse_size(given["max_memory"]) == 12_345_678


def test_prompts_stand_as_a_file_and_defaults_not_at_all() -> None:
    assert list(options_of(Protocol(), Protocol())) == []
    prompts = Protocol(prompts=("a cat", "a dog"))
    assert list(options_of(prompts, Protocol())) == ["--prompts", "prompts.txt"]


def test_the_command_of_a_study_gives_its_options_again() -> None:
    options = Options(3, sparsities=(0.4, 0.5), steps=(2, 4), layers=("*.a", "*.b"), seed=1)
    words = list(options_of(options, Options()))
    given = reproduce.make_context("reproduce", ["main", "-o", "out", *words]).params
    assert (given["num_images"], given["seed"], given["layers"]) == (3, 1, ("*.a", "*.b"))
    assert (given["sparsities"], given["steps"]) == ("0.4,0.5", "2,4")
