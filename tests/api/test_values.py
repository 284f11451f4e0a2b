"""Every argument of every function, given a value of a wrong kind or size: one line, at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import ditprune
from ditprune import Call
from ditprune.errors import DitpruneError, in_python, options_named


class Thing:
    """Nothing that any argument takes; its name is the same in every process."""

    def __repr__(self) -> str:
        return "a thing"


NAN, HUGE = float("nan"), 10**400
WRONG: dict[str, dict[str, list[Any]]] = {
    "calibrate": {
        "blocks": [5, b"x", ["x", 3], {"transformer": 5}, {"x": "y"}, [None]],
        "num_bins": ["x", 2.5, 0, -1, 10**9, True, [3], NAN],
        "protocol": [5, "x", [1], {"a": {1}}, {"a": Thing()}, {"a": NAN}, {"a": torch.ones(2)},
                     {"a": HUGE}, {"a": "\ud800"}],
        "progress": ["x", 5, Thing()],
        "batches": [None, 5, "", [], [5], [{}], [((), {})], ["x"], [{"x": 1}], [torch.ones(3)],
                    [{"hidden_states": torch.ones(1, 4, 8, 8)}], [{"hidden_states": "x"}]],
        "model": [None, 5, "m", {}, torch.nn.Linear(2, 2)],
    },
    "prune_": {
        "sparsity": ["x", True, [0.5], {"a": 0.5}, {"transformer": "x"}, {}, 1 + 0j, HUGE, NAN,
                     torch.tensor(0.5)],
        "saliency": [5, [], {}, {"name": 5}, {"name": "power", "weight_power": "x"}, float],
        "granularity": [5, {}, {"name": "cag", "cag_threshold": "x"}, Thing()],
        "pattern": [5, "x", [2, 4], True], "include": [5, [5], {}, b"x", {"transformer": 5}],
        "auxiliary": [5, "yes", []], "mask": [5, []], "allocation": [5, []],
        "reconstruction": [5, {"name": "obs", "damping": "x"}, {"name": "obs", "block_size": 2.5}],
        "refinement": [5, {"name": "distill", "num_steps": "x"}, Thing()],
        "packages": ["x", 2.5, True, [], 0, HUGE], "max_error": ["x", True, [], -1, HUGE],
        "preset": [5, []], "recipe": [5, "x", {}, {"transformer": 5}, []],
        "stats": [5, [], {}, Path("nowhere")], "batches": [5, []],
        "max_gram_bytes": ["x", 2.5, True, -1, 0, []], "foo": [1],
    },
    "prune": {
        "model": [5, None, [], "", b"x", {}], "out": [5, None, []], "overwrite": ["x", 5, None],
        "device": [3, []], "gram_memory": [2.5, []], "batches": [5],
    },
    "sample": {
        "num_samples": ["x", 2.5, True, None, [], HUGE], "seed": ["x", 2.5, None, True, 10**30],
        "labels": [5, "x", ["x"], [2.5], [True], [None], [], [10**30]], "prompts": [5, [5], ""],
        "timesteps": [5, None, []], "batch_size": ["x", 0, None], "num_bins": ["x", None],
        "guidance_scale": ["x", True, [], NAN, 1e30], "num_inference_steps": ["x", 2.5, 1001],
        "pipe": [None, 5, Thing()],
    },
    "evaluate": {
        "dense": [5, None, []], "pruned": [5, None, [], "x", [5], {"a": 5}, {}],
        "judge": [5, "x"], "num_images": ["x", 2.5, True, None], "labels": [5, ["x"], []],
        "pipeline_options": [5, "x", [], {5: 1}, {"x": 1}], "metrics": [5, [5], "x"],
        "feature_extractor": [5, []], "clip": [5], "images": [5], "device": [3, "x"],
        "dtype": [3, "x", torch.int8], "max_memory": ["x", 2.5, -1, True, []], "seed": [None, "x"],
    },
    "convert": {"to": [5, None, [], "x"], "overwrite": ["no"]},
    "extract_mask": {"overwrite": [0]},
    "recorded": {"denoiser": [None, 5, "x", []]},
}  # fmt: skip
CASES = [
    pytest.param(verb, word, value, id=f"{verb}-{word}={value!r:.25}")
    for verb, words in WRONG.items()
    for word, values in words.items()
    for value in values
]


@pytest.fixture(scope="module")
def pipe(tiny_pipeline: Path) -> Any:
    import diffusers

    return diffusers.DiTPipeline.from_pretrained(tiny_pipeline)


@pytest.fixture
def words_of(pipe, batches, tiny_stats, tiny_pipeline: Path, tmp_path: Path) -> dict[str, Any]:
    """For each function, words with which it would work."""
    quick = {"num_inference_steps": 1}
    return {
        "calibrate": {"model": pipe, "batches": batches(pipe.transformer, 1)},
        "prune_": {"model": pipe, "stats": tiny_stats},
        "prune": {"model": tiny_pipeline, "out": tmp_path / "out", "stats": tiny_stats},
        "sample": {"pipe": pipe, "num_samples": 1, **quick},
        "evaluate": {"dense": tiny_pipeline, "pruned": [tiny_pipeline], "out": tmp_path / "e",
                     "num_images": 1, "num_held_out": 1, **quick},
        "convert": {"model": tiny_pipeline, "out": tmp_path / "c", "to": "compact"},
        "extract_mask": {"out": tiny_pipeline, "file": tmp_path / "m"},
        "recorded": {},
    }  # fmt: skip


@pytest.mark.parametrize(("verb", "word", "value"), CASES)
def test_a_wrong_value_is_one_line(
    verb: str, word: str, value: Any, words_of: dict[str, Any], tmp_path: Path
) -> None:
    given = {**words_of[verb], word: value}
    with pytest.raises(DitpruneError) as error, _entered(getattr(ditprune, verb), given):
        pass
    assert len(str(error.value).splitlines()) == 1
    assert len(str(error.value)) < 600
    assert "--" not in str(error.value)
    assert not any(tmp_path.iterdir())


def _entered(function: Any, words: dict[str, Any]) -> Any:
    """What the function gives as a context; most of them have raised before."""
    return function(**words)


@pytest.mark.parametrize("value", [np.int64(1), torch.tensor(1)], ids=repr)
def test_whole_numbers_of_other_libraries_are_taken(pipe, value: Any) -> None:
    calls = ditprune.sample(pipe, num_samples=value, labels=[value], num_inference_steps=1)
    assert type(calls.protocol["num_samples"]) is int
    assert calls.protocol["labels"] == [1]


def test_places_in_the_words_of_torch_are_taken(words_of, batches, pipe) -> None:
    calls = ditprune.api.calls.Calls([Call.of(batch) for batch in batches(pipe.transformer, 9)])
    outcome = ditprune.prune(
        **words_of["prune"], device=torch.device("cpu"), reconstruction="obs", batches=calls
    )
    assert outcome.num_pruned > 0


@pytest.mark.parametrize(
    ("refused", "in_python", "as_options"),
    [
        (lambda: ditprune.Recipe(sparsity=2), "sparsity=2: expected", "--sparsity 2: expected"),
        (lambda: ditprune.Recipe(mask="reconstruction"), "pass reconstruction obs or admm, or leave"
         " mask out", "pass --reconstruction obs or admm, or leave --mask out"),
        (lambda: ditprune.prune("bundled", "o", gram_memory="8GB"), "gram_memory: this recipe",
         "--gram-memory: this recipe"),
        (lambda: ditprune.prune("bundled", "o", batches="calls"), "batches: this recipe updates",
         "--calibration-set: this recipe updates"),
        (lambda: ditprune.runtime.sparsify_(torch.nn.Linear(1, 1), backend="gpu"),
         "backend='gpu': ", "--backend 'gpu': "),
        (lambda: ditprune.prune("bundled", Path(__file__).parent), "pass overwrite=True",
         "pass --overwrite"),
    ],
)  # fmt: skip
def test_a_refusal_has_the_words_of_who_reads_it(refused, in_python, as_options) -> None:
    with pytest.raises(DitpruneError) as error:
        refused()
    assert in_python in str(error.value)
    with options_named():
        assert as_options in str(error.value)
    assert in_python in str(error.value)


def test_commands_paths_and_dashes_stay_as_they_are() -> None:
    text = "`ditprune prune M --overwrite`: a/--mask, a--b, --, -o and --max-error 0.5 --mask x"
    assert in_python(text) == text.replace("--max-error 0.5 --mask x", "max_error=0.5 mask x")
