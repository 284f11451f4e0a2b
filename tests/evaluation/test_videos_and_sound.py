"""Videos are compared frame by frame, sound by the error of its latents; the page shows both."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

import ditprune
import pipeline_parts as parts
from ditprune.errors import RecipeError
from ditprune.evaluation.metrics import per_image
from tiny_pipelines import PIPELINES

OPTIONS = {"height": 32, "width": 32, "pipeline_options": {"num_frames": 9}}
SMALL: dict[str, Any] = {
    "num_images": 3, "num_inference_steps": 2, "num_held_out": 4, "batch_size": 2,
    "metrics": ["relative_error", "ssim", "psnr"],
}  # fmt: skip


def stable_audio() -> Any:
    """A tiny pipeline of sound."""
    from diffusers import (
        AutoencoderOobleck,
        EDMDPMSolverMultistepScheduler,
        StableAudioDiTModel,
        StableAudioPipeline,
        StableAudioProjectionModel,
    )

    width = parts.TEXT_WIDTH
    return StableAudioPipeline(
        vae=AutoencoderOobleck(
            encoder_hidden_size=4, downsampling_ratios=[1, 2], channel_multiples=[2, 4],
            decoder_channels=4, decoder_input_channels=4, audio_channels=2, sampling_rate=4,
        ),
        text_encoder=parts.t5(),
        projection_model=StableAudioProjectionModel(width, width, 0, 32),
        tokenizer=parts.tokenizer(),
        transformer=StableAudioDiTModel(
            sample_size=8, in_channels=4, num_layers=2, attention_head_dim=8,
            num_attention_heads=4, num_key_value_attention_heads=2, out_channels=4,
            cross_attention_dim=width, time_proj_dim=8, global_states_input_dim=2 * width,
            cross_attention_input_dim=width,
        ),
        scheduler=EDMDPMSolverMultistepScheduler(),
    )  # fmt: skip


def pruned(pipeline: Any) -> Any:
    denoiser = copy.deepcopy(pipeline.transformer)
    ditprune.prune_(denoiser, None, saliency="magnitude", sparsity=0.6)
    return denoiser


@pytest.fixture(scope="module")
def video() -> Any:
    return PIPELINES["WanPipeline"]()


@pytest.fixture(scope="module")
def measured(video: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any, Any]:
    """The results of a video pipeline in memory, their folder, and the pruned denoiser."""
    half, out = pruned(video), tmp_path_factory.mktemp("video")
    return ditprune.evaluate(video, {"half": half}, out, **SMALL, **OPTIONS), out, half


def test_frames_of_videos_are_images(measured: Any) -> None:
    results, out, _ = measured
    protocol, half = results["protocol"], results["models"][1]
    assert (protocol["num_images"], protocol["num_frames"]) == (3, 9)
    assert protocol["resolution"] == [32, 32]
    assert half["metrics"]["ssim"]["low"] < half["metrics"]["ssim"]["high"] < 1
    assert half["metrics"]["relative_error"]["value"] > 0
    assert results["metrics"]["ssim"]["note"] == "the mean over all 9 frames of a video"
    assert len(results["gallery"]) == 3
    assert (out / "grid.png").is_file()
    page = ditprune.report(out).read_text(encoding="utf-8")
    assert "the mean over all 9 frames of a video" in page
    assert "num frames" in page


def test_the_number_of_a_video_is_the_mean_over_its_frames(video: Any, measured: Any) -> None:
    results, _, half = measured
    seeds = [sample["seed"] for sample in results["gallery"]]
    prompts = [sample["condition"] for sample in results["gallery"]]

    def frames(transformer: Any) -> Any:
        drawn = type(video)(**{**video.components, "transformer": transformer})
        drawn.set_progress_bar_config(disable=True)
        videos = drawn(
            prompts, height=32, width=32, num_frames=9, num_inference_steps=2, output_type="np",
            generator=[torch.Generator().manual_seed(seed) for seed in seeds],
        ).frames  # fmt: skip
        pixels = torch.from_numpy(videos).movedim(-1, -3)
        return (pixels * 255).round().to(torch.uint8).flatten(0, 1).float() / 255

    ssim = per_image.ssim(frames(half), frames(video.transformer)).mean().item()
    assert results["models"][1]["metrics"]["ssim"]["value"] == pytest.approx(ssim, abs=2e-3)


def test_videos_from_folders_too(video: Any, tmp_path: Any) -> None:
    video.save_pretrained(tmp_path / "wan")
    half = PIPELINES["WanPipeline"]()
    half.transformer = pruned(video)
    half.save_pretrained(tmp_path / "half")
    results = ditprune.evaluate(
        str(tmp_path / "wan"), [str(tmp_path / "half")], tmp_path / "e",
        **SMALL | {"num_images": 2}, **OPTIONS,
    )  # fmt: skip
    assert results["models"][1]["metrics"]["psnr"]["value"] < 100
    assert results["protocol"]["num_frames"] == 9


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")  # of diffusers' Oobleck
def test_sound_has_the_error_of_its_latents_alone(tmp_path: Any) -> None:
    sound = stable_audio()
    sound.save_pretrained(tmp_path / "sound")
    half = copy.copy(sound)
    half.transformer = pruned(sound)
    half.save_pretrained(tmp_path / "half")
    words = {"num_inference_steps": 2, "num_held_out": 4,
             "pipeline_options": {"audio_end_in_s": 4.0}}  # fmt: skip
    given: Any
    for given, models in (
        (sound, {"half": half.transformer}),
        (str(tmp_path / "sound"), {"half": str(tmp_path / "half")}),
    ):
        results = ditprune.evaluate(given, models, tmp_path / "e", **words)
        metrics = results["models"][1]["metrics"]
        assert metrics.pop("relative_error")["value"] > 0
        assert not any(metrics.values())
        assert results["metrics"]["fid"]["unavailable"].startswith("the pipeline draws neither")
        assert results["gallery"] == []
        assert not (tmp_path / "e" / "grid.png").exists()
        page = ditprune.report(tmp_path / "e").read_text(encoding="utf-8")
        assert "half: not judged" in page
        assert "the pipeline draws neither images nor frames" in page
    with pytest.raises(RecipeError, match="judge looks at images, and dense draws audios"):
        ditprune.evaluate(sound, {"half": half}, tmp_path / "f", judge=lambda *_: {}, **words)
