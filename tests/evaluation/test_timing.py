"""Seconds stand side by side where the machine had the same to do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from ditprune.checkpoints.locate import locate
from ditprune.evaluation.compare import compare as evaluate
from ditprune.evaluation.drawing import Timing
from ditprune.evaluation.protocol import Measures, Protocol
from ditprune.evaluation.results import why_no_seconds
from ditprune.method.words import build
from ditprune.pruning.loop import prune_checkpoint

ALONE, SHARED = "processes: 1, threads: 2 (m)", "processes: 2, threads: 1 (m)"
SMALL = Protocol(2, num_inference_steps=1, guidance_scale=1.0, num_held_out=1, batch_size=1)


def test_only_one_and_the_same_load_has_seconds() -> None:
    alone, shared, mixed = (Timing(1.0, loads) for loads in ((ALONE,), (SHARED,), (ALONE, SHARED)))
    assert why_no_seconds(alone, alone) is None
    assert "under several loads" in str(why_no_seconds(mixed, mixed))
    for own, dense in ((shared, alone), (alone, mixed), (alone, shared)):
        assert "under another load" in str(why_no_seconds(own, dense))
    assert "processes: 2, threads: 1 (m)" in str(why_no_seconds(shared, alone))


@pytest.fixture(scope="module")
def pruned(tiny_pipeline, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("timing") / "pruned"
    prune_checkpoint(locate(str(tiny_pipeline)), out, None, build(saliency="magnitude"))
    return out


def test_kept_dense_images_of_another_load_give_no_speed(
    tiny_pipeline, pruned, tmp_path, monkeypatch
) -> None:
    def run(out: Path) -> list[dict[str, Any]]:
        measures = Measures(("ssim",), images=tmp_path / "kept")
        models = [("p", locate(str(pruned)))]
        return evaluate(locate(str(tiny_pipeline)), models, out, SMALL, measures=measures)["models"]

    for row in run(tmp_path / "a"):
        assert row["accounting"]["seconds_per_image"] > 0
        assert not any("load" in warning for warning in row["warnings"])
    num_threads = torch.get_num_threads()
    monkeypatch.setattr(torch, "get_num_threads", lambda: num_threads + 1)
    dense, own = run(tmp_path / "b")
    assert dense["accounting"]["seconds_per_image"] > 0  # as it was measured
    assert own["accounting"]["seconds_per_image"] is None
    (warning,) = [text for text in own["warnings"] if "load" in text]
    assert f"threads: {num_threads + 1} " in warning
    assert f"threads: {num_threads} " in warning
