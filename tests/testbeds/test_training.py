"""The scripts that train and draw the test beds, at a tiny size and for a few steps."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "examples")]

import draw_testbed  # noqa: E402
from testbed_training import autoencoder, flux, loop, pixart, text  # noqa: E402
from testbed_training.settings import DRAWING, SIZES, TEXT_LENGTH, Settings  # noqa: E402

from testbeds import scenes  # noqa: E402

# diffusers hands a tensor to numpy's array() where DPMSolverMultistepScheduler is set up.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

STAGES: dict[str, Callable[[Settings], dict[str, float]]] = {
    "autoencoder": autoencoder.train_autoencoder,
    "pixart": pixart.train_pixart,
    "flux": flux.train_flux,
}
CAPTIONS = [scenes.captions(scenes.scene(i, "held_out"))[0] for i in range(2)]


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """What all three stages were trained with, in one go."""
    folder = tmp_path_factory.mktemp("beds")
    made = Settings(
        folder / "out", folder / "runs", num_scenes=8, num_steps=3, batch_size=4, size=SIZES["tiny"]
    )
    for train in STAGES.values():
        train(made)
    return made


def load(settings: Settings, bed: str) -> DiffusionPipeline:
    pipeline = DiffusionPipeline.from_pretrained(settings.out / bed, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_that_is_killed_ends_as_one_that_is_not(
    stage: str, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uninterrupted = settings.runs / f"{stage}.ckpt"
    again = replace(settings, runs=tmp_path, save_minutes=0)
    if stage != "autoencoder":
        (tmp_path / "vae").symlink_to(settings.runs / "vae")
        if stage == "flux":
            again = replace(again, out=settings.out)
    real = loop.step_generator

    def killed(device: str, name: str, step: int) -> torch.Generator:
        if step == 2:
            raise KeyboardInterrupt
        return real(device, name, step)

    monkeypatch.setattr(loop, "step_generator", killed)
    with pytest.raises(KeyboardInterrupt):
        STAGES[stage](again)
    monkeypatch.setattr(loop, "step_generator", real)
    state = STAGES[stage](again)
    assert state["step"] == 3
    first, second = (
        torch.load(file, weights_only=True) for file in (uninterrupted, tmp_path / f"{stage}.ckpt")
    )
    for kind in ("parameters", "average"):
        assert all(torch.equal(a, b) for a, b in zip(first[kind], second[kind], strict=True))


def test_a_decoder_is_trained_on_and_the_latents_stay(settings: Settings, tmp_path: Path) -> None:
    for name in ("runs", "out"):
        shutil.copytree(getattr(settings, name), tmp_path / name)
    own = replace(settings, runs=tmp_path / "runs", out=tmp_path / "out")
    autoencoder.train_decoder(own)
    before, after = (autoencoder.trained_autoencoder(one).state_dict() for one in (settings, own))
    changed = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"decoder", "post_quant_conv"}
    for bed in DRAWING:
        drawn = load(own, bed).vae.state_dict()
        assert all(torch.equal(drawn[name], after[name]) for name in after), bed


def test_a_bed_may_begin_from_a_finished_one(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "vae").symlink_to(settings.runs / "vae")
    start = settings.out / "flux"
    again = replace(settings, runs=tmp_path, start=start, num_steps=1, rate=0.0)
    flux.train_flux(replace(again, out=shutil.copytree(settings.out, tmp_path / "out")))
    first, second = (
        load(replace(settings, out=out), "flux") for out in (start.parent, tmp_path / "out")
    )
    for name, tensor in first.transformer.state_dict().items():
        assert torch.equal(tensor, second.transformer.state_dict()[name]), name


def first_call(pipeline: DiffusionPipeline, bed: str) -> dict[str, Any]:
    """With what the pipeline first calls its transformer, for two captions."""
    calls: list[dict[str, Any]] = []

    def note(module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Any]) -> None:
        calls.append({"hidden_states": args[0], **kwargs} if args else dict(kwargs))

    handle = pipeline.transformer.register_forward_pre_hook(note, with_kwargs=True)
    draw_testbed.draw(pipeline, CAPTIONS, 2, {"num_inference_steps": 2})
    handle.remove()
    return calls[0]


def same(ours: object, theirs: object) -> bool:
    if not isinstance(theirs, Tensor):
        return ours == theirs
    assert isinstance(ours, Tensor)
    assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype)
    return torch.allclose(ours.float(), theirs.float(), atol=1e-5)


@pytest.mark.parametrize("bed", DRAWING)
def test_training_calls_the_transformer_as_the_pipeline_does(bed: str, settings: Settings) -> None:
    pipeline = load(settings, bed)
    theirs, ours = first_call(pipeline, bed), []

    def note(module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Any]) -> None:
        ours.append({"hidden_states": args[0], **kwargs} if args else dict(kwargs))

    pipeline.transformer.register_forward_pre_hook(note, with_kwargs=True)
    noisy, timestep = theirs["hidden_states"], theirs["timestep"]
    if bed == "pixart":
        ids = text.token_ids(pipeline.tokenizer, ["", "", *CAPTIONS])
        pixart.denoise(pipeline.transformer, pipeline.text_encoder, noisy, timestep, ids)
    else:
        encoders = (pipeline.text_encoder, pipeline.text_encoder_2)
        tokenizers = (pipeline.tokenizer, pipeline.tokenizer_2)
        ids = [text.token_ids(tokenizer, CAPTIONS) for tokenizer in tokenizers]
        flux.denoise(pipeline.transformer, encoders, noisy, timestep, *ids)
    assert ours[0].keys() == theirs.keys()
    for name, value in theirs.items():
        assert same(ours[0][name], value), name


def test_the_first_step_of_each_pipeline_is_pure_noise(settings: Settings) -> None:
    """The range of the timesteps that training draws is the one that drawing asks for."""
    assert first_call(load(settings, "pixart"), "pixart")["timestep"].tolist() == [999] * 4
    assert first_call(load(settings, "flux"), "flux")["timestep"].tolist() == [1.0, 1.0]
    levels = flux.noise_levels(torch.rand(1000))
    assert 0 < levels.min() < 0.01
    assert 0.99 < levels.max() < 1


def test_a_white_latent_decodes_to_the_same_picture(settings: Settings) -> None:
    model = autoencoder.new_autoencoder(settings).eval()
    images = scenes.render([scenes.scene(i, "train") for i in range(4)], range(4))
    before = autoencoder.reconstruction_error(model, images)
    posterior = model.encode(images.float() / 127.5 - 1).latent_dist
    autoencoder.whiten(model, images)
    white = model.encode(images.float() / 127.5 - 1).latent_dist
    assert torch.allclose(white.mean.mean((0, 2, 3)), torch.zeros(4), atol=1e-4)
    assert torch.allclose(white.mean.std((0, 2, 3)), torch.ones(4), atol=1e-4)
    scale = posterior.mean.std((0, 2, 3))[:, None, None]
    assert torch.allclose(white.std * scale, posterior.std, rtol=1e-3)
    assert autoencoder.reconstruction_error(model, images) == pytest.approx(before, rel=1e-4)


def test_every_word_is_one_token() -> None:
    t5, clip = (new(scenes.VOCABULARY) for new in (text.new_t5_tokenizer, text.new_clip_tokenizer))
    tables = [text.WordTable(tokenizer, scenes.VOCABULARY) for tokenizer in (t5, clip)]
    for tokenizer, table in zip((t5, clip), tables, strict=True):
        told = ["", *(c for i in range(50) for c in scenes.captions(scenes.scene(i, "train")))]
        assert torch.equal(table.ids(told), text.token_ids(tokenizer, told))
    for index in range(50):
        for caption in scenes.captions(scenes.scene(index, "train")):
            length = len(caption.split())
            assert len(t5(caption).input_ids) == length + 1 <= TEXT_LENGTH
            assert len(clip(caption).input_ids) == length + 2 <= TEXT_LENGTH


@pytest.mark.parametrize("bed", DRAWING)
def test_a_folder_draws_and_its_card_says_how(bed: str, settings: Settings) -> None:
    pipeline = load(settings, bed)
    images = draw_testbed.draw(pipeline, CAPTIONS, 1, {"num_inference_steps": 2})
    assert [image.size for image in images] == [(64, 64)] * 2
    card = (settings.out / bed / "README.md").read_text(encoding="utf-8")
    options = ", ".join(f"{key}={value!r}" for key, value in DRAWING[bed].items())
    assert f"`pipeline(prompt, {options})`" in card.splitlines()
    weights = (settings.out / bed).rglob("*.safetensors")
    assert {str(t) for file in weights for t in dtypes(file)} == {"torch.float16"}


def dtypes(file: Path) -> set[torch.dtype]:
    from safetensors.torch import load_file

    return {tensor.dtype for tensor in load_file(file).values()}
