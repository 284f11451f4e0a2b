"""`shrink_` and `shrink`: pipelines and denoisers, calls in every form, and what is refused."""

from __future__ import annotations

import copy
import logging
from pathlib import Path
from typing import Any

import pytest
import torch

import ditprune
from ditprune.api import shrink as shrink_module
from ditprune.calibration.sample import Sampling
from ditprune.calls import Call
from ditprune.checkpoints.weights import Weights
from ditprune.errors import DitpruneError, ModelError, OutputError, RecipeError
from folders import save_denoiser

WORDS: dict[str, Any] = {"ratio": 0.25, "modulation": "none"}


@pytest.fixture(scope="module")
def calls(tiny_dit, batches) -> list[Any]:
    return list(batches(tiny_dit()))


def state(denoiser: Any) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in denoiser.state_dict().items()}


def is_unchanged(denoiser: Any, before: dict[str, torch.Tensor]) -> bool:
    now = denoiser.state_dict()
    return now.keys() == before.keys() and all(torch.equal(now[n], before[n]) for n in before)


def test_a_denoiser_and_words_or_a_recipe(tiny_dit, calls) -> None:
    denoiser, other = tiny_dit(), tiny_dit()
    outcome = ditprune.shrink_(denoiser, calls, **WORDS)
    ditprune.shrink_(other, iter(calls), recipe=ditprune.ShrinkRecipe(**WORDS))
    assert outcome.ratio >= 0.25
    assert outcome.after.num_macs < outcome.before.num_macs
    assert is_unchanged(denoiser, state(other))

    assert list(outcome.denoisers) == ["transformer"]


def test_each_denoiser_of_a_pipeline_or_none(tiny_dit, calls) -> None:
    class Two:
        """Two denoisers, as a Wan pipeline has."""

        def __init__(self) -> None:
            self.transformer, self.transformer_2 = tiny_dit(), tiny_dit(1)
            self.components = {
                "transformer": self.transformer, "transformer_2": self.transformer_2
            }  # fmt: skip

    names = ("transformer", "transformer_2")
    both = [Call(c.args, c.kwargs, denoiser=n) for n in names for c in map(Call.of, calls)]
    pipeline = Two()
    before = state(pipeline.transformer)
    with pytest.raises(DitpruneError):
        ditprune.shrink_(
            pipeline, both, ratio={"transformer": 0.2, "transformer_2": 0.95}, modulation="none"
        )
    assert is_unchanged(pipeline.transformer, before)
    outcome = ditprune.shrink_(
        pipeline, both, ratio={"transformer": 0.1, "transformer_2": 0.5}, modulation="none"
    )
    assert list(outcome.denoisers) == list(names)
    few, many = outcome.denoisers.values()
    assert few.ratio < 0.5 <= many.ratio
    assert any(name.startswith("transformer_2.") for name in outcome.parts)


@pytest.mark.parametrize(
    ("batches", "words", "error", "told"),
    [
        ([], {}, RecipeError, "calibration calls"),
        ([{"hidden_states": torch.zeros(1, 4, 8, 8), "nothing": 1}], {}, ModelError, "cannot run"),
        (None, {}, RecipeError, "calibration calls"),
        ([{}], {"ratio": 2.0}, RecipeError, "ratio=2.0: expected the share"),
        ([{}], {"ration": 0.2}, RecipeError, "no word of a recipe is 'ration'"),
        ([{}], {"ratio": {"other": 0.2}}, RecipeError, "one for each denoiser"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_what_shrink_in_memory_refuses(batches, words, error, told, tiny_dit) -> None:
    with pytest.raises(error, match=told):
        ditprune.shrink_(tiny_dit(), batches, **words)


def test_a_folder_with_calls_of_every_kind(tiny_dit, calls, tmp_path) -> None:
    folder = save_denoiser(tiny_dit(), tmp_path / "model")
    with pytest.raises(RecipeError, match="without its pipeline cannot be sampled"):
        ditprune.shrink(folder, tmp_path / "out", ratio=0.25)
    kept_calls = shrink_module.Calls([Call.of(batch) for batch in calls])
    kept_calls.save(tmp_path / "calls")
    outs = [tmp_path / name for name in ("list", "object", "folder")]
    for out, given in zip(outs, (calls, kept_calls, tmp_path / "calls"), strict=True):
        outcome = ditprune.shrink(folder, out, given, **WORDS)
        assert outcome.ratio >= 0.25
    sizes = {out.joinpath("config.json").read_bytes() for out in outs}
    assert len(sizes) == 1
    assert ditprune.verify(outs[0]) == []
    with pytest.raises(OutputError, match="exists"):
        ditprune.shrink(folder, outs[0], calls, **WORDS)
    with pytest.raises(ModelError, match=r"ditprune\.prune_"):
        ditprune.shrink(tiny_dit(), outs[0], calls)


def test_without_calls_a_pipeline_is_sampled_once(
    tiny_pipeline, tmp_path, monkeypatch, caplog
) -> None:
    monkeypatch.setattr(shrink_module, "Sampling", lambda: Sampling(4))
    caplog.set_level(logging.INFO, "ditprune")
    ditprune.shrink(tiny_pipeline, tmp_path / "a", **WORDS)
    ditprune.shrink(tiny_pipeline, tmp_path / "b", **WORDS)
    sampled, used = (record.getMessage() for record in caplog.records[-2:])
    assert "sampling" in sampled
    assert "using those in" in used
    calls = tmp_path / f"{Path(tiny_pipeline).resolve().name}.calls"
    assert len(ditprune.load_calls(calls)) == 4
    monkeypatch.setattr(shrink_module, "Sampling", lambda: Sampling(5))
    with pytest.raises(OutputError, match=r"num_samples: 4 → 5.*pass batches"):
        ditprune.shrink(tiny_pipeline, tmp_path / "c", **WORDS)


@pytest.mark.parametrize("modulation", ["none", 0.5])
def test_a_folder_fits_into_so_many_bytes(modulation, tiny_dit, tmp_path) -> None:
    calls = [
        {"hidden_states": torch.randn(256, 4, 8, 8), "timestep": torch.randint(1000, (256,)),
         "class_labels": torch.randint(1000, (256,))}
    ]  # fmt: skip
    denoiser = copy.deepcopy(tiny_dit()).to(torch.bfloat16)
    folder = save_denoiser(denoiser, tmp_path / "model")
    before = sum(entry.size_bytes for entry in Weights(folder).entries.values())
    share = 0.9 if modulation == "none" else 0.8
    goal = int(share * before)
    ditprune.shrink(folder, tmp_path / "out", calls, fit=goal, modulation=modulation, multiple=4)
    after = sum(entry.size_bytes for entry in Weights(tmp_path / "out").entries.values())
    assert (share - 0.05) * before < after <= goal
