"""`prune` of a folder: where, in which dtype and in how much memory the denoiser runs."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from ditprune.api import prune_folder
from ditprune.api.folders import verify
from ditprune.calibration.sample import Sampling
from ditprune.checkpoints.calibration_set import load_calibration_set
from ditprune.errors import RecipeError
from ditprune.pruning.update import folder as updates
from ditprune.pruning.update.blockwise import in_folder
from folders import tensors_on_disk


@pytest.fixture
def loaded(monkeypatch) -> list[Any]:
    """Where each denoiser was loaded to be updated."""
    places: list[Any] = []
    load = updates.load_denoiser

    def spying(folder: Path, placement: Any) -> Any:
        places.append(placement)
        return load(folder, placement)

    on_disk = in_folder.OnDisk

    def streaming(folder: Path, blocks: Any, placement: Any) -> Any:
        places.append(placement)
        return on_disk(folder, blocks, placement)

    monkeypatch.setattr(updates, "load_denoiser", spying)
    monkeypatch.setattr(in_folder, "OnDisk", streaming)
    return places


@pytest.fixture(scope="module")
def tiny_calls(tiny_dit, batches) -> list[Any]:
    return batches(tiny_dit())


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_a_pipeline_is_sampled_and_updated_in_the_dtype_that_was_asked_for(
    tiny_pipeline, tmp_path, monkeypatch, loaded, ditprune, caplog
) -> None:
    monkeypatch.setattr(prune_folder, "Sampling", lambda: Sampling(4))
    words = ("prune", tiny_pipeline, "--dtype", "bfloat16", "--max-memory", "8GB", "-o")
    code, _, err = ditprune(*words, tmp_path / "a", "--reconstruction", "obs")
    assert code == 0, err
    stem = Path(tiny_pipeline).resolve().name
    calls = load_calibration_set(tmp_path / f"{stem}.calls")
    assert calls.identity["placement"]["dtype"] == "bfloat16"
    assert [str(place.dtype) for place in loaded] == ["torch.bfloat16"]
    written = tensors_on_disk(tmp_path / "a" / "transformer")
    assert {str(t.dtype) for t in written.values()} == {"torch.float32"}
    assert list(verify(tmp_path / "a")) == []
    with pytest.raises(RecipeError, match=r"made in bfloat16, and dtype is float32; pass"):
        prune_folder.prune(tiny_pipeline, tmp_path / "b")
    caplog.set_level(logging.INFO, logger="ditprune")
    prune_folder.prune(tiny_pipeline, tmp_path / "b", dtype="bfloat16", max_memory="8GB")
    assert "nothing is sampled, so --device, --dtype and --max-memory change nothing" in caplog.text


def test_an_update_in_another_dtype_is_other_work(
    tiny_pipeline, tiny_stats, tiny_calls, tmp_path, loaded
) -> None:
    words = {"stats": tiny_stats, "batches": tiny_calls, "reconstruction": "obs"}
    for dtype in (None, "bfloat16"):
        prune_folder.prune(tiny_pipeline, tmp_path / str(dtype), dtype=dtype, **words)
    assert [str(place.dtype) for place in loaded] == ["torch.float32", "torch.bfloat16"]


@pytest.mark.parametrize(
    ("place", "option"), [({"dtype": "bfloat16"}, "dtype"), ({"max_memory": 10**9}, "max_m")]
)
def test_a_recipe_that_runs_nothing_takes_no_place(
    place, option, tiny_pipeline, tiny_stats, tmp_path
) -> None:
    with pytest.raises(RecipeError, match=rf"{option}.*: this recipe updates no weights"):
        prune_folder.prune(tiny_pipeline, tmp_path / "out", tiny_stats, **place)
    assert list(tmp_path.iterdir()) == []


def test_what_would_take_more_memory_is_refused_before_work(
    tiny_pipeline, tiny_stats, tiny_calls, tmp_path, loaded
) -> None:
    words = {"stats": tiny_stats, "batches": tiny_calls}
    for recipe, text in (
        ({"preset": "best"}, "updates transformer block by block, and takes"),
        ({"preset": "best", "allocation": "sensitivity"}, "loads transformer whole, and takes"),
    ):
        with pytest.raises(RecipeError, match=f"max_memory.* {text}"):
            prune_folder.prune(
                tiny_pipeline, tmp_path / "out", **words, **recipe, max_memory="300KB"
            )
    assert list(tmp_path.iterdir()) == []
    assert loaded == []


def test_grams_take_what_the_rest_leaves(
    tiny_pipeline, tiny_stats, tiny_calls, tmp_path, monkeypatch
) -> None:
    words = {"stats": tiny_stats, "batches": tiny_calls, "reconstruction": "obs", "packages": 2}
    ready = prune_folder.check_prune(tiny_pipeline, tmp_path / "out", **words)
    assert ready.max_gram_bytes is None
    few = prune_folder.check_prune(tiny_pipeline, tmp_path / "out", **words, max_memory="1250KB")
    assert 0 < few.max_gram_bytes < 500_000
    own = {**words, "max_memory": "2MB", "gram_memory": "70KB"}
    assert prune_folder.check_prune(tiny_pipeline, tmp_path / "out", **own).max_gram_bytes == 70_000
    prune_folder.prune(tiny_pipeline, tmp_path / "a", **words)
    prune_folder.prune(tiny_pipeline, tmp_path / "b", **words, max_memory="1250KB")
    claims = [
        json.loads((tmp_path / name / "transformer" / "ditprune.json").read_text(encoding="utf-8"))
        for name in "ab"
    ]
    assert claims[0]["totals"] == claims[1]["totals"]
