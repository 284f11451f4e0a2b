"""Steps are counted by what the pipeline calls, not by the timesteps of its scheduler."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import ditprune
import pipeline_parts as parts
from ditprune.evaluation.held_out import sample_held_out
from ditprune.evaluation.protocol import Protocol
from tiny_denoisers import redraw_
from tiny_pipelines import SANA


def sana_sprint(kind: type | None = None) -> Any:
    """Two calls for the three timesteps of its scheduler, of which the loop drops the last."""
    import diffusers

    pipe = (kind or diffusers.SanaSprintPipeline)(
        tokenizer=parts.tokenizer(),
        text_encoder=parts.gemma(),
        vae=parts.sana_vae(),
        transformer=parts.denoiser("SanaTransformer2DModel", guidance_embeds=True),
        scheduler=diffusers.SCMScheduler(),
    )
    for seed, (_, part) in enumerate(sorted(pipe.components.items())):
        if isinstance(part, nn.Module):
            parts.around_one_(redraw_(part, seed))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def untold() -> Any:
    """One that does not say how many timesteps are left."""
    import diffusers

    class Untold(diffusers.SanaSprintPipeline):
        _num_timesteps = property(lambda _self: None, lambda _self, _value: None)

    return sana_sprint(Untold)


def run_before() -> Any:
    """One that still says how many there were in a run before."""
    pipe = sana_sprint()
    pipe._num_timesteps = 1
    return pipe


OPTIONS = {"prompts": ["a", "b"], "num_inference_steps": 2, "batch_size": 4, **SANA}


@pytest.mark.parametrize("make", [sana_sprint, untold, run_before], ids=lambda f: f.__name__)
def test_every_call_is_a_step(make: Callable[[], Any]) -> None:
    pipe = make()
    calls = ditprune.sample(pipe, num_samples=4, **OPTIONS)
    timesteps = {call.place: call.kwargs["timestep"] for call in calls}
    with ditprune.recorded(pipe.transformer) as own:
        pipe(["a"], num_inference_steps=2, output_type="latent", **SANA)
    assert len(own) == 2
    assert sorted(timesteps) == [0.25, 0.75]
    for call, (_, timestep) in zip(own, sorted(timesteps.items()), strict=True):
        torch.testing.assert_close(call.kwargs["timestep"], timestep[:1])
    assert ditprune.calibrate(pipe, calls).column_norms


def test_the_steps_of_a_protocol_are_those_of_the_calls() -> None:
    options = {word: value for word, value in SANA.items() if word not in ("height", "width")}
    protocol = Protocol(
        num_held_out=2, prompts=("a", "b"), num_inference_steps=2, height=32, width=32,
        pipeline_options=options,
    )  # fmt: skip
    assert sample_held_out(sana_sprint(), protocol).num_steps == 2
