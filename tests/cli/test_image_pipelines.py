"""Pipelines that start from an image are refused in one line that says how to calibrate them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import pipeline_parts as parts


def of_control() -> Any:
    from diffusers import FluxControlNetModel

    control = FluxControlNetModel.from_transformer(
        parts.denoiser("FluxTransformer2DModel"), num_layers=1, num_single_layers=1,
        attention_head_dim=16, num_attention_heads=2, load_weights_from_transformer=False,
    )  # fmt: skip
    return parts.flux("FluxControlNetPipeline", controlnet=control)


@pytest.mark.filterwarnings("ignore:.*is deprecated:FutureWarning")  # diffusers' own use
@pytest.mark.parametrize("kind", ["FluxImg2ImgPipeline", "FluxInpaintPipeline", "of_control"])
def test_what_needs_an_image_is_one_line(kind: str, ditprune, tmp_path: Path) -> None:
    pipe = of_control() if kind == "of_control" else parts.flux(kind)
    pipe.save_pretrained(tmp_path / "model")
    model, out = tmp_path / "model", tmp_path / "s.safetensors"
    steps = ["--num-samples", 1, "--num-inference-steps", 1, "--height", 16, "--width", 16]
    code, printed, err = ditprune("calibrate", model, "-o", out, *steps)
    assert (code, printed) == (2, "")
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert lines[0].startswith(f"error: {type(pipe).__name__} failed (")
    assert "`with ditprune.recorded(denoiser) as calls:` and use ditprune.calibrate" in lines[0]
    assert "Traceback" not in err
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
