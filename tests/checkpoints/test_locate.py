"""Finding MODEL: every form it may have, and one line for what it is not."""

from __future__ import annotations

import json
import shutil
from fnmatch import fnmatch

import huggingface_hub
import pytest

from ditprune import bundled
from ditprune.checkpoints.locate import locate
from ditprune.errors import ModelError
from ditprune.writing.json_file import read_json
from folders import add_denoiser, edit_json


def refused(model: object, match: str) -> None:
    with pytest.raises(ModelError, match=match) as caught:
        locate(str(model))
    assert "\n" not in str(caught.value)
    assert str(model) in str(caught.value)


def test_a_pipeline_folder(tiny_pipeline) -> None:
    found = locate(str(tiny_pipeline))
    assert (found.name, found.root) == (str(tiny_pipeline), tiny_pipeline)
    assert found.denoiser == tiny_pipeline / "transformer"
    assert found.is_pipeline


def test_a_bare_denoiser_folder(tiny_pipeline) -> None:
    found = locate(str(tiny_pipeline / "transformer"))
    assert found.root == found.denoiser == tiny_pipeline / "transformer"
    assert not found.is_pipeline


def test_a_relative_folder_and_one_under_home(tiny_pipeline, monkeypatch) -> None:
    monkeypatch.chdir(tiny_pipeline.parent)
    assert locate(tiny_pipeline.name).denoiser.is_dir()
    assert locate("./" + tiny_pipeline.name).denoiser.is_dir()
    monkeypatch.setenv("HOME", str(tiny_pipeline.parent))
    assert locate(f"~/{tiny_pipeline.name}").denoiser == tiny_pipeline / "transformer"


def test_a_folder_that_looks_like_a_hub_id_is_a_folder(tiny_pipeline, monkeypatch) -> None:
    monkeypatch.chdir(tiny_pipeline.parent.parent)
    assert locate(f"{tiny_pipeline.parent.name}/{tiny_pipeline.name}").is_pipeline


def test_bundled() -> None:
    found = locate("bundled")
    assert found.root == bundled.PIPELINE
    assert found.denoiser == bundled.PIPELINE / "transformer"


def test_a_file_is_refused(tiny_pipeline) -> None:
    refused(tiny_pipeline / "model_index.json", "is a file; expected a folder: .*from_single_file")


@pytest.mark.parametrize("model", ["nothing", "/no/such/folder", "./a/b", "../a/b", "a/b/c", ""])
def test_what_is_not_there_is_refused(model, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    refused(model, "no such folder|neither|empty text")


def test_the_home_of_nobody_is_refused() -> None:
    refused("~no-such-user-here/model", "no such folder")


@pytest.mark.parametrize("name", ["flux-fp8.safetensors", "flux-Q4.gguf", "x.ckpt"])
def test_a_single_file_is_told_how_it_becomes_a_folder(name: str, tmp_path) -> None:
    (tmp_path / name).touch()
    refused(tmp_path, r"from_single_file\(...\)`, then `.save_pretrained")
    refused(tmp_path / name, r"from_single_file\(...\)`, then `.save_pretrained")


def test_a_folder_with_neither_config_is_refused(tmp_path) -> None:
    refused(tmp_path, "neither model_index.json .* nor config.json")


@pytest.mark.parametrize("content", [b"{", b"", b"\xff\xfe\x00", b"[1]", b"3", b"[" * 100_000])
def test_a_broken_index_is_refused(content, own_pipeline) -> None:
    (own_pipeline / "model_index.json").write_bytes(content)
    refused(own_pipeline, "expected a JSON object")


def test_read_json_refuses_what_is_not_an_object(tmp_path) -> None:
    (tmp_path / "a.json").write_text(json.dumps({"a": 1}), encoding="utf-8")
    assert read_json(tmp_path / "a.json") == {"a": 1}
    with pytest.raises(ModelError, match=r"b\.json: cannot be read"):
        read_json(tmp_path / "b.json")


def test_a_pipeline_without_denoiser_is_refused(own_pipeline) -> None:
    edit_json(own_pipeline / "model_index.json", lambda index: index.pop("transformer"))
    refused(own_pipeline, "no .transformer. folder, nor another .*: scheduler, vae")


def test_a_pipeline_whose_transformer_folder_is_missing_is_refused(own_pipeline) -> None:
    shutil.rmtree(own_pipeline / "transformer")
    refused(own_pipeline, "no 'transformer' folder")


@pytest.mark.parametrize("name", ["transformer_2", "unconditional_transformer", "unet"])
def test_several_denoisers_come_in_the_order_of_the_index(name, own_pipeline, tiny_dit) -> None:
    folder = add_denoiser(own_pipeline, tiny_dit(), name)
    found = locate(str(own_pipeline))
    expected = {"transformer": own_pipeline / "transformer", name: folder}
    assert list(found.denoisers.items()) == list(expected.items())
    assert found.denoiser == own_pipeline / "transformer"
    alone = locate(str(folder))
    assert dict(alone.denoisers) == {"transformer": folder}
    assert not alone.is_pipeline


def test_a_denoiser_of_any_name_is_found(own_pipeline) -> None:
    (own_pipeline / "transformer").rename(own_pipeline / "prior")
    index = own_pipeline / "model_index.json"
    edit_json(index, lambda it: it.update(prior=it.pop("transformer")))
    assert dict(locate(str(own_pipeline)).denoisers) == {"prior": own_pipeline / "prior"}


@pytest.mark.parametrize(
    ("entry", "class_name"),
    [
        ([None, None], "DiTTransformer2DModel"),
        (["transformers", "CLIPTextModel"], "CLIPTextModel"),
        (["mine", "DiTTransformer2DModel"], "DiTTransformer2DModel"),
        (["diffusers", "VQModel"], "VQModel"),
        (["diffusers", "AutoencoderKL"], "AutoencoderKL"),
        (["diffusers", "FluxControlNetModel"], "FluxControlNetModel"),
        (["diffusers", "StableAudioProjectionModel"], "StableAudioProjectionModel"),
        ("text", "DiTTransformer2DModel"),
    ],
)
def test_what_stands_beside_a_denoiser_is_none(entry, class_name, own_pipeline, tiny_dit) -> None:
    folder = add_denoiser(own_pipeline, tiny_dit(), "other")
    edit_json(folder / "config.json", lambda config: config.update(_class_name=class_name))
    edit_json(own_pipeline / "model_index.json", lambda index: index.update(other=entry))
    assert list(locate(str(own_pipeline)).denoisers) == ["transformer"]


@pytest.mark.parametrize("entry", [["diffusers", "AutoModel"], ["diffusers.models", "Mine"]])
def test_the_class_of_the_config_decides(entry, own_pipeline, tiny_dit) -> None:
    add_denoiser(own_pipeline, tiny_dit(), "other")
    edit_json(own_pipeline / "model_index.json", lambda index: index.update(other=entry))
    assert list(locate(str(own_pipeline)).denoisers) == ["transformer", "other"]


def test_a_hub_id_offline_ends_in_one_line(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    refused("some-owner/some-model", "the hub did not give it .*check the name, the connection")


def test_a_hub_id_is_asked_for_data_only(tiny_pipeline, tmp_path, monkeypatch) -> None:
    asked = {}

    def snapshot_download(hub_id: str, allow_patterns: list[str]) -> str:
        asked[hub_id] = allow_patterns
        return str(tiny_pipeline)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    found = locate("some-owner/some-model")
    assert (found.name, found.root) == ("some-owner/some-model", tiny_pipeline)
    patterns = asked["some-owner/some-model"]
    for file in ("transformer/diffusion_pytorch_model.safetensors", "vae/config.json"):
        assert any(fnmatch(file, pattern) for pattern in patterns)
    # At the root a pipeline's repository keeps the same weights in other formats.
    for file in (
        "flux1-dev.safetensors",
        "model.py",
        "a.bin",
        "a.pt",
        "a.pkl",
        "a.ckpt",
        "a.msgpack",
        "a.onnx",
    ):
        assert not any(fnmatch(file, pattern) for pattern in patterns)


@pytest.mark.parametrize("text", ["first\nsecond", "", "\n"])
def test_whatever_the_hub_client_says_is_one_line(text, tmp_path, monkeypatch) -> None:
    def snapshot_download(*_args: object, **_kwargs: object) -> str:
        raise ConnectionError(text)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    refused("some-owner/some-model", "first|ConnectionError")
