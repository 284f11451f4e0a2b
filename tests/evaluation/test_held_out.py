"""Held-out calls: which rows of them are predictions for the same latent."""

from __future__ import annotations

from typing import Any

import pytest

from ditprune.evaluation.held_out import predictions, rows_between, sample_held_out
from ditprune.evaluation.protocol import Protocol
from tiny_pipelines import PIPELINES

VIDEO: dict[str, Any] = {"height": 32, "width": 32, "pipeline_options": {"num_frames": 9}}


@pytest.mark.parametrize(
    ("name", "words"), [("DiTPipeline", {}), ("WanPipeline", VIDEO)], ids=["stacked", "two calls"]
)
def test_guidance_predicts_each_latent_twice(name: str, words: dict[str, Any]) -> None:
    """DiT stacks the condition and none in one call; Wan makes two."""
    pipeline = PIPELINES[name]()
    protocol = Protocol(num_inference_steps=2, guidance_scale=4.0, num_held_out=3, **words)
    calls = sample_held_out(pipeline, protocol).calls["transformer"]
    noise = predictions(pipeline.transformer, calls)
    rows = rows_between(pipeline.transformer, calls, noise, noise)
    latents = [row.latent for row in rows]
    assert len(rows) == 6
    assert sorted(latents.count(latent) for latent in set(latents)) == [2, 2, 2]
    assert {row.timestep is None for row in rows} == {False}
