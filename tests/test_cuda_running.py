"""On a CUDA device: running 2:4, offloading, and the command line, each by itself."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import ditprune as package
from ditprune import bundled
from ditprune.runtime import desparsify_, sparsify_
from killed import serving
from on_cuda import DEVICE, always_two_of_four, far, marks, moved, output, placed

pytestmark = marks


# --- 2:4 ---


def wide_dit(heads: int = 8, num_layers: int = 2) -> nn.Module:
    """A DiT whose every weight has a shape that 2:4 takes, pruned 2:4, bfloat16."""
    from diffusers import DiTTransformer2DModel

    torch.manual_seed(0)
    denoiser = DiTTransformer2DModel(
        num_attention_heads=heads, attention_head_dim=64, num_layers=num_layers, in_channels=4,
        sample_size=32, patch_size=2, num_embeds_ada_norm=1000,
    ).eval().requires_grad_(False).to(DEVICE, torch.bfloat16)  # fmt: skip
    package.prune_(denoiser, saliency="magnitude", pattern="2:4")
    return denoiser


def wide_call(rows: int = 2, dtype: torch.dtype = torch.bfloat16) -> dict[str, Any]:
    return {
        "hidden_states": torch.randn(rows, 4, 32, 32, device=DEVICE, dtype=dtype),
        "timestep": torch.full((rows,), 500, device=DEVICE),
        "class_labels": torch.zeros(rows, dtype=torch.long, device=DEVICE),
    }


def test_a_denoiser_runs_two_of_four_and_comes_back() -> None:
    denoiser, call = wide_dit(), wide_call()
    dense, state = output(denoiser, call), copy.deepcopy(denoiser.state_dict())
    decisions = sparsify_(denoiser, call, backend=always_two_of_four())
    swapped = [name for name, one in decisions.items() if one.is_swapped]
    assert len(swapped) >= 2 * 7, {one.reason for one in decisions.values()}
    assert far(output(denoiser, call), dense) < 0.02
    for name, tensor in denoiser.state_dict().items():
        assert (tensor == state[name]).all(), name
    assert sorted(desparsify_(denoiser)) == sorted(swapped)
    assert far(output(denoiser, call), dense) < 1e-3


def test_what_gains_by_the_clock_runs_two_of_four() -> None:
    denoiser, call = wide_dit(heads=32, num_layers=1), wide_call(rows=32)
    dense = output(denoiser, call)
    decisions = sparsify_(denoiser, call, backend="semi-structured")
    if not any(one.is_swapped for one in decisions.values()):
        pytest.skip("; ".join(sorted({one.reason for one in decisions.values()})))
    assert far(output(denoiser, call), dense) < 0.02


def test_a_copy_of_a_sparse_denoiser_gives_the_same() -> None:
    denoiser, call = wide_dit(), wide_call()
    sparsify_(denoiser, call, backend=always_two_of_four())
    assert far(output(copy.deepcopy(denoiser), call), output(denoiser, call)) < 1e-3


def test_a_sparse_denoiser_runs_under_autocast() -> None:
    denoiser, call = wide_dit(), wide_call(dtype=torch.float32)
    with torch.autocast(DEVICE, torch.bfloat16):
        dense = output(denoiser, call)
        sparsify_(denoiser, call, backend=always_two_of_four())
        assert far(output(denoiser, call), dense) < 0.02


def test_a_sparse_denoiser_compiles() -> None:
    denoiser, call = wide_dit(num_layers=1), wide_call()
    sparsify_(denoiser, call, backend=always_two_of_four())
    expected = output(denoiser, call)
    torch._dynamo.reset()
    denoiser.compile(backend="aot_eager")
    assert far(output(denoiser, call), expected) < 0.02


# --- The bundled pipeline ---


def load_bundled() -> Any:
    from diffusers import DiTPipeline

    pipeline = DiTPipeline.from_pretrained(bundled.PIPELINE)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def draw(pipeline: Any) -> Any:
    generator = [torch.Generator().manual_seed(i) for i in range(2)]
    return pipeline([3, 5], num_inference_steps=2, generator=generator, output_type="np").images


def bundled_calls(device: str) -> list[package.Call]:
    generator = torch.Generator().manual_seed(0)
    return [
        placed(
            {
                "hidden_states": torch.randn(4, 4, 8, 8, generator=generator),
                "timestep": torch.randint(0, 1000, (4,), generator=generator),
                "class_labels": torch.arange(4),
            },
            device,
        )
        for _ in range(2)
    ]


def test_the_bundled_pipeline_is_pruned_on_the_device_and_draws() -> None:
    pipeline = load_bundled().to(DEVICE)
    stats = package.calibrate(pipeline.transformer, bundled_calls(DEVICE))
    outcome = package.prune_(pipeline.transformer, stats)
    assert outcome.sparsity == pytest.approx(0.5, abs=0.01)
    assert 0 <= draw(pipeline).min() < draw(pipeline).max() <= 1


@pytest.mark.parametrize("way", ["enable_model_cpu_offload", "enable_sequential_cpu_offload"])
def test_an_offloaded_pipeline_is_pruned_or_refused_in_a_line(way) -> None:
    pytest.importorskip("accelerate")
    pipeline = load_bundled()
    getattr(pipeline, way)(device=DEVICE)
    try:
        stats = package.calibrate(pipeline.transformer, bundled_calls(DEVICE))
        outcome = package.prune_(pipeline.transformer, moved(stats, "cpu"))
    except package.DitpruneError as refusal:
        said = str(refusal)
    else:
        said = ""
    assert "\n" not in said
    if said:
        return
    assert outcome.sparsity == pytest.approx(0.5, abs=0.01)
    draw(pipeline)
    pipeline.remove_all_hooks()
    for name, one in outcome.targets.items():
        weight = pipeline.transformer.get_parameter(f"{name}.weight")
        assert int((weight == 0).sum()) == one.num_zero, name


# --- The command line ---

SAMPLING = ("--num-samples", 8, "--batch-size", 2, "--num-inference-steps", 3)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> tuple[Path, Path]:
    """Statistics and a calibration set of the bundled pipeline, made on the device."""
    from ditprune.cli.main import run

    place = tmp_path_factory.mktemp("made")
    file, kept = place / "s.safetensors", place / "set"
    line = ["calibrate", bundled.PIPELINE, "-o", file, "--calibration-set", kept, *SAMPLING]
    assert run([*map(str, line), "--device", DEVICE]) == 0
    return file, kept


def test_a_calibrated_folder_is_pruned(made, tmp_path, ditprune) -> None:
    out = tmp_path / "out"
    code, _, err = ditprune("prune", bundled.PIPELINE, "-o", out, "--statistics", made[0])
    assert code == 0, err
    assert (out / "transformer").is_dir()


@pytest.mark.parametrize("words", [("--reconstruction", "admm"), ("--allocation", "sensitivity")])
def test_a_folder_is_adjusted_on_the_device(words, made, tmp_path, ditprune) -> None:
    line = ["prune", bundled.PIPELINE, "-o", tmp_path / "out", "--statistics", made[0], *words]
    line += ["--include", "*_blocks.0.*", "--calibration-set", made[1], "--device", DEVICE]
    code, _, err = ditprune(*line)
    assert code == 0, err


def test_a_calibration_killed_on_the_device_goes_on(tmp_path) -> None:
    with serving(tmp_path) as server:
        line = ["calibrate", bundled.PIPELINE, "-o", tmp_path / "whole", *SAMPLING]
        line += ["--device", DEVICE]
        server.start(line, last_step=0)
        code, num_steps = server.finish()
        assert code == 0
        line[3] = tmp_path / "out"
        server.start(line, last_step=num_steps // 2)
        assert server.finish()[0] == -9
        assert not (tmp_path / "out").exists()
        server.start(line)
        assert server.finish()[0] == 0
    from safetensors.torch import load_file

    expected = load_file(tmp_path / "whole")
    for name, tensor in load_file(tmp_path / "out").items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-3, atol=1e-3)
