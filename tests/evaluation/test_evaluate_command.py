"""The command line that repeats an evaluation or a study gives its options again."""

from __future__ import annotations

import shlex
from pathlib import Path

import torch

from ditprune.cli.evaluate import evaluate
from ditprune.cli.options import read_labels, read_measures, read_pipeline_options
from ditprune.cli.reproduce import reproduce
from ditprune.denoiser.placement import Placement, parse_size
from ditprune.evaluation.protocol import Measures, Protocol
from ditprune.evaluation.results import evaluate_command
from ditprune.reporting.commands import options_of
from ditprune.reproduce.rows import Options


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
