"""What functions are given that they cannot use, or that belongs to another denoiser."""

from __future__ import annotations

import pytest
import torch

import ditprune
from ditprune.api import prune_folder
from ditprune.calibration.sample import Sampling
from ditprune.errors import ModelError, RecipeError, StatisticsError, TargetError
from folders import files_of, tensors_on_disk
from tiny_pipelines import FACTS, PIPELINES

# diffusers' schedulers under the newest numpy
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
SECOND, WAN = "transformer_2", "WanPipeline, two denoisers"


@pytest.fixture(scope="module")
def wan():
    return PIPELINES[WAN]


@pytest.fixture(scope="module")
def wan_calls(wan) -> ditprune.Calls:
    return ditprune.sample(
        wan(), prompts=["one", "two"], num_samples=8, num_inference_steps=4, batch_size=2,
        **FACTS[WAN].arguments(2),
    )  # fmt: skip


@pytest.fixture(scope="module")
def wan_stats(wan, wan_calls) -> ditprune.Statistics:
    return ditprune.calibrate(wan(), wan_calls)


@pytest.mark.parametrize("given", ["one cat", [], 3, [3]])
def test_prompts_that_are_no_list_of_texts_are_refused(given, wan) -> None:
    with pytest.raises(RecipeError, match="expected a list, as in prompts="):
        ditprune.sample(wan(), prompts=given, num_samples=2)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"labels": 3}, "expected a list, as in labels="),
        ({"labels": "37"}, "expected a list, as in labels="),
        ({"labels": []}, "expected a list, as in labels="),
        ({"num_samples": 2.0}, "num_samples=2.0: expected a whole number"),
        ({"output_type": "pil"}, "output_type does not apply"),
    ],
)
def test_what_sample_cannot_use_is_refused(words, message, tiny_pipeline) -> None:
    from diffusers import DiTPipeline

    pipe = DiTPipeline.from_pretrained(tiny_pipeline)
    with pytest.raises(RecipeError, match=message):
        ditprune.sample(pipe, **words)
    with pytest.raises(ModelError, match="expected a diffusers pipeline"):
        ditprune.sample(pipe.transformer)


def test_a_denoiser_alone_takes_no_calls_of_another(wan, wan_calls, wan_stats, tmp_path) -> None:
    second = wan().transformer_2
    with pytest.raises(ModelError, match=r"pass calls\['…'\]"):
        ditprune.calibrate(second, wan_calls)
    with pytest.raises(ModelError, match=r"pass calls\['…'\]"):
        ditprune.prune_(second, wan_stats, batches=wan_calls, reconstruction="obs")
    wan().save_pretrained(tmp_path / "dense")
    wan_calls.save(tmp_path / "calls")
    loaded = ditprune.load_calls(tmp_path / "calls")
    ditprune.prune(
        tmp_path / "dense", tmp_path / "whole", wan_stats, batches=loaded, reconstruction="obs"
    )
    right = tensors_on_disk(tmp_path / "whole" / SECOND)
    for number, calls in enumerate((tmp_path / "calls", loaded[SECOND], wan_calls[SECOND])):
        out = tmp_path / f"alone {number}"
        ditprune.prune(
            tmp_path / "dense" / SECOND, out, wan_stats, batches=calls, reconstruction="obs"
        )
        assert all(torch.equal(right[key], tensor) for key, tensor in tensors_on_disk(out).items())
    (tmp_path / "dense" / SECOND).rename(tmp_path / "renamed")
    with pytest.raises(ModelError, match="a denoiser without its pipeline"):
        ditprune.prune(
            tmp_path / "renamed", tmp_path / "out", wan_stats, batches=loaded, reconstruction="obs"
        )


@pytest.mark.filterwarnings("ignore:.torch_dtype. is deprecated:FutureWarning")
def test_a_denoiser_that_keeps_some_weights_in_float32_gets_its_calls(
    wan, wan_calls, tmp_path
) -> None:
    wan().save_pretrained(tmp_path / "dense")
    pipe = type(wan()).from_pretrained(tmp_path / "dense", torch_dtype=torch.bfloat16)
    assert next(pipe.transformer.parameters()).dtype == torch.float32
    stats = ditprune.calibrate(pipe, wan_calls)
    outcome = ditprune.prune_(pipe, stats, 0.5, batches=wan_calls, reconstruction="obs")
    assert outcome.sparsity == pytest.approx(0.5, abs=0.01)


def test_the_outcome_of_one_denoiser_is_not_saved_as_that_of_the_first(
    wan, wan_stats, tmp_path
) -> None:
    pipe = wan()
    ditprune.prune_(pipe.transformer, wan_stats, 0.5)
    outcome = ditprune.prune_(pipe.transformer_2, wan_stats, 0.5)
    pipe.save_pretrained(tmp_path / "out")
    before = files_of(tmp_path / "out")
    with pytest.raises(ModelError, match="save it to that one's folder"):
        outcome.save(tmp_path / "out")
    assert files_of(tmp_path / "out") == before
    outcome.save(tmp_path / "out" / SECOND)
    assert ditprune.verify(tmp_path / "out" / SECOND) == []


def test_without_statistics_globs_are_refused_before_sampling(tiny_pipeline, tmp_path) -> None:
    with pytest.raises(TargetError, match="'nothing' matches none"):
        ditprune.prune(tiny_pipeline, tmp_path / "out", include="nothing")
    with pytest.raises(RecipeError, match="divisible by 7"):
        ditprune.prune(tiny_pipeline, tmp_path / "out", pattern="3:7")
    assert list(tmp_path.iterdir()) == []


def test_without_statistics_the_folders_above_out_are_made(tiny_pipeline, tmp_path, monkeypatch):
    monkeypatch.setattr(prune_folder, "Sampling", lambda: Sampling(2))
    ditprune.prune(tiny_pipeline, tmp_path / "new" / "place" / "out")
    assert ditprune.verify(tmp_path / "new" / "place" / "out") == []


@pytest.mark.parametrize("given", [0.5, {"transformer": None}, [1]])
def test_what_is_no_statistics_is_refused(given, tiny_dit) -> None:
    with pytest.raises(StatisticsError, match="expected what ditprune"):
        ditprune.prune_(tiny_dit(), given)
    with pytest.raises(ModelError, match="batches: int given"):
        ditprune.calibrate(tiny_dit(), 5)
