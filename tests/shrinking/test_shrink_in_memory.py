"""The trained model, smaller: fewer multiplications, few errors, and it saves and loads again."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

import ditprune
from ditprune import bundled
from ditprune.denoiser.replay import predicted_noise, relative_error, run_call
from ditprune.errors import RecipeError, TargetError
from ditprune.method.distill import Distill
from ditprune.progress import silent
from ditprune.pruning.update.blockwise import teacher
from ditprune.shrinking import one_denoiser
from ditprune.shrinking.in_memory import shrink_denoiser_
from ditprune.shrinking.recipe import ShrinkRecipe


@pytest.fixture(scope="module")
def trained() -> Any:
    from diffusers import DiTPipeline

    pipe = DiTPipeline.from_pretrained(bundled.PIPELINE)
    calls = list(ditprune.sample(pipe, labels=list(range(10)), num_samples=32))
    rest = [call for number, call in enumerate(calls) if number % 5 != 2]
    return pipe.transformer.eval(), rest, calls[2::5]


def error(denoiser: Any, dense: Any, calls: Any) -> float:
    pairs = [(predicted_noise(run_call(m, call), 4) for m in (denoiser, dense)) for call in calls]
    return relative_error((a, b) for a, b in pairs)


def shrunk(trained: Any, **words: Any) -> tuple[Any, Any, float]:
    dense, calls, held = trained
    smaller = copy.deepcopy(dense)
    outcome = shrink_denoiser_(smaller, calls, ShrinkRecipe(**words), silent)
    return smaller, outcome, error(smaller, dense, held)


def test_units_go_by_their_price_and_the_error_stays_small(trained: Any) -> None:
    smaller, outcome, lost = shrunk(trained, ratio=0.3, modulation="none")
    assert 0.3 <= outcome.ratio < 0.31
    assert 0 < lost < 0.15
    assert not outcome.whole
    assert outcome.after.num_parameters == sum(p.numel() for p in smaller.parameters())
    macs = outcome.after.num_macs / outcome.before.num_macs
    assert 0.7 < macs < 0.73  # what lies outside of heads and neurons stays
    heads = {n: len(p.kept) for n, p in outcome.parts.items() if p.kind == "heads"}
    assert len(set(heads.values())) > 1
    for name, count in heads.items():
        attention = smaller.get_submodule(name)
        assert attention.heads == count >= 1
        assert attention.to_out[0].in_features == 32 * count
    widths = [len(p.kept) for p in outcome.parts.values() if p.kind == "neurons"]
    assert all(width % 16 == 0 for width in widths)


def test_without_a_ratio_only_the_rank_of_modulation_goes(trained: Any) -> None:
    _, outcome, lost = shrunk(trained, ratio=0, modulation=0.75)
    assert lost < 0.01
    assert outcome.ratio == 0
    ranks = outcome.ranks.values()
    assert all(rank.num_weights <= 0.25 * rank.num_weights_before for rank in ranks)
    assert len(ranks) == 8


def test_an_error_in_place_of_a_ratio(trained: Any) -> None:
    few = shrunk(trained, max_error=0.0003, modulation="none")[1]
    many = shrunk(trained, max_error=0.003, modulation="none")[1]
    assert few.error <= 0.0003 < many.error <= 0.003
    assert few.ratio < many.ratio


def test_it_is_saved_loaded_and_shrunk_again(trained: Any, tmp_path: Path) -> None:
    dense, calls, held = trained
    smaller, _, _ = shrunk(trained, ratio=0.3)
    smaller.save_pretrained(tmp_path)
    again = type(smaller).from_pretrained(tmp_path).eval()
    assert error(again, smaller, held) == 0
    second = shrink_denoiser_(again, calls, ShrinkRecipe(ratio=0.2, modulation="none"), silent)
    assert second.after.num_macs < second.before.num_macs
    again.save_pretrained(tmp_path / "twice")
    third = type(smaller).from_pretrained(tmp_path / "twice").eval()
    assert error(third, again, held) == 0
    assert error(third, dense, held) < 0.5


def test_globs_and_parts_say_what_may_go(trained: Any) -> None:
    _, outcome, _ = shrunk(trained, ratio=0.2, parts="neurons", exclude="*.0.ff", modulation="none")
    assert {part.kind for part in outcome.parts.values()} == {"neurons"}
    assert "transformer_blocks.0.ff" not in outcome.parts
    with pytest.raises(TargetError, match=r"include='x\*' matches none of 16"):
        shrunk(trained, include="x*")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ({"ratio": 1.0}, "ratio=1.0: expected the share that goes, from 0 to 0.95"),
        ({"ratio": True}, "ratio True: expected the share"),
        ({"ratio": 0.2, "max_error": 0.1}, "exclude each other"),
        ({"price": "watts"}, "price='watts'"),
        ({"parts": ("ears",)}, "parts='ears'"),
        ({"multiple": 0}, "multiple=0: expected at least 1"),
        ({"max_shapes": 0}, "max_shapes=0: expected at least 1"),
        ({"modulation": 1.5}, "modulation=1.5"),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused(words: dict[str, Any], told: str) -> None:
    with pytest.raises(RecipeError, match=told):
        ShrinkRecipe(**words)


def test_a_ratio_that_cannot_be_reached_says_what_can(trained: Any) -> None:
    dense, calls, _ = trained
    before = {name: tensor.clone() for name, tensor in dense.state_dict().items()}
    with pytest.raises(RecipeError, match=r"ratio=0.95: at most 0.9\d\d of these parts can go"):
        shrink_denoiser_(dense, calls, ShrinkRecipe(ratio=0.95), silent)
    assert all(torch.equal(before[name], tensor) for name, tensor in dense.state_dict().items())


def test_training_lowers_the_error_on_what_it_saw(
    trained: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Judged by the rows that it saw: on so few it does not help on others."""
    monkeypatch.setattr(one_denoiser, "SETTINGS", Distill(num_steps=40))
    monkeypatch.setattr(teacher, "split", lambda rows, _seed: (list(rows), []))
    dense, calls, _ = trained
    words: dict[str, Any] = {"ratio": 0.5, "modulation": "none", "parts": "neurons"}
    best, outcome, _ = shrunk(trained, preset="best", **words)
    fast, _, _ = shrunk(trained, **words)
    assert not [note for note in outcome.notes if "was dropped" in note]
    assert error(best, dense, calls) < 0.9 * error(fast, dense, calls)


def test_training_that_does_not_help_is_dropped_out_loud(
    trained: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(one_denoiser, "SETTINGS", Distill(num_steps=4, learning_rate=0.1))
    words: dict[str, Any] = {"ratio": 0.5, "modulation": "none", "parts": "neurons"}
    best, outcome, _ = shrunk(trained, preset="best", **words)
    fast, _, _ = shrunk(trained, **words)
    assert len([note for note in outcome.notes if "was dropped" in note]) == 8
    pairs = zip(best.parameters(), fast.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
