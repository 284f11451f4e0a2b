"""What the index of a pipeline may name: known kinds of classes, from the libraries themselves."""

from __future__ import annotations

import json
import tomllib
from functools import partial
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import pytest

from ditprune.checkpoints.locate import ModelFolder
from ditprune.denoiser import components
from ditprune.denoiser.components import check_components
from ditprune.errors import ModelError

NEVER = "code from model folders is never run"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A pipeline with a text encoder, as far as the index tells."""
    write(tmp_path)
    for name in ("text_encoder", "tokenizer"):
        (tmp_path / name).mkdir()
    return tmp_path


def write(folder: Path, **entries: Any) -> None:
    index = {
        "_class_name": "PixArtSigmaPipeline",
        "scheduler": ["diffusers", "DPMSolverMultistepScheduler"],
        "text_encoder": ["transformers", "T5EncoderModel"],
        "tokenizer": ["transformers", "T5TokenizerFast"],
        "transformer": ["diffusers", "PixArtTransformer2DModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    (folder / "model_index.json").write_text(json.dumps(index | entries), encoding="utf-8")


def check(folder: Path) -> tuple[str, str]:
    return check_components(ModelFolder("m", folder, {"transformer": folder / "transformer"}))


@pytest.mark.parametrize(
    "entry",
    [
        [None, None], None, True, 7, 0.5, "text", ["diffusers", "VaeImageProcessor"],
        ["stable_diffusion", "StableDiffusionSafetyChecker"],
        ["transformers", "AutoTokenizer"], ["transformers", "CLIPImageProcessor"], [10, 20, 30],
        ["transformers", "CLIPFeatureExtractor"], {"0": "cat", "1": "dog"}, {"0": "cat"},
    ],
    ids=str,
)  # fmt: skip
def test_what_pipelines_of_the_hub_have_is_taken(entry: object, folder: Path) -> None:
    if entry == ["transformers", "CLIPFeatureExtractor"]:
        from diffusers.pipelines import pipeline_loading_utils

        if not hasattr(pipeline_loading_utils, "_maybe_remap_transformers_class"):
            pytest.skip("this diffusers does not know the new name")
    write(folder, extra=entry)
    assert check(folder) == ("PixArtSigmaPipeline", "DPMSolverMultistepScheduler")


@pytest.mark.parametrize(
    "entry",
    [
        "os", "", [], ["os", "system"], ["diffusers"], ["diffusers", "utils"], [None, "x"],
        ["diffusers", "DiTPipeline"], ["diffusers", "AutoModel"], ["diffusers", "logging"],
        ["diffusers.utils", "logging"], ["", "x"],
        ["transformers", "pipeline"], ["transformers", "Trainer"], ["transformers", "os"],
        ["pipeline_utils", "DiffusionPipeline"], ["stable_diffusion", "StableDiffusionPipeline"],
        ["stable_diffusion", "os"], ["../x", "y"], ["pag", "torch"], [["a", "b"], "c"],
        ["diffusers", "ModularPipeline"], ["diffusers", "ModularPipelineBlocks"],
        ["diffusers", "AutoPipelineForText2Image"], ["diffusers", "FluxModularPipeline"],
        ["diffusers", "ConfigMixin"], ["diffusers", "DDIMScheduler\u200b"],
        ["diffu\u0455ers", "DDIMScheduler"], ["\uff44iffusers", "DDIMScheduler"],
        ["diffusers", "__loader__"], ["diffusers", "schedulers.DDIMScheduler"],
        {"os": 1, "system": 2}, [["a", "b"]], [{"a": "b"}, 1], [None, 3], ["a", "b", "c"],
    ],
    ids=str,
)  # fmt: skip
def test_all_else_is_refused(entry: object, folder: Path) -> None:
    write(folder, extra=entry)
    if entry == "":
        check(folder)  # a setting
        return
    with pytest.raises(ModelError, match=NEVER):
        check(folder)


@pytest.mark.parametrize(
    "name",
    ["../x", "a/b", "/etc", "..", ".", "", "a.b", "vae ", "\0", "a\nb", "\uff56ae", "x" * 999],
)
@pytest.mark.parametrize("entry", [["diffusers", "DDIMScheduler"], "12"], ids=str)
def test_a_component_of_no_plain_name_is_refused(name: str, entry: object, folder: Path) -> None:
    """diffusers joins it to the folder."""
    write(folder, **{name: entry})
    with pytest.raises(ModelError, match=NEVER) as error:
        check(folder)
    assert str(error.value).isprintable()


@pytest.mark.parametrize("name", [None, 3, "os", "utils", "AutoModel", "DiTTransformer2DModel",
                                  ["pipeline", "Mine"], "", "Mine"])  # fmt: skip
def test_a_pipeline_of_no_known_class_is_refused(name: object, folder: Path) -> None:
    write(folder, _class_name=name)
    with pytest.raises(ModelError, match=NEVER):
        check(folder)


@pytest.mark.parametrize(
    "file",
    ["None.py", "vae/diffusers.py", "text_encoder/transformers.py", "vae/model_index.json",
     "extra/0.py", "safety/stable_diffusion.py"],
)  # fmt: skip
def test_a_file_that_diffusers_would_run_is_refused(file: str, folder: Path) -> None:
    write(
        folder, extra={"0": "cat", "1": "dog"},
        safety=["stable_diffusion", "StableDiffusionSafetyChecker"],
    )  # fmt: skip
    check(folder)
    (folder / file).parent.mkdir(exist_ok=True)
    (folder / file).write_text("{}", encoding="utf-8")
    with pytest.raises(ModelError, match=NEVER):
        check(folder)


@pytest.mark.parametrize(
    ("name", "entry", "config"),
    [
        ("tokenizer", "AutoTokenizer", {"auto_map": {"AutoTokenizer": "mine.Mine"}}),
        ("tokenizer", "CLIPProcessor", {"auto_map": {"AutoProcessor": "mine.Mine"}}),
        ("text_encoder", "AutoModel", {"a": [{"auto_map": {"AutoModel": "mine.Mine"}}]}),
        ("text_encoder", "T5EncoderModel", {"attn_implementation": "who/kernel"}),
        ("text_encoder", "T5EncoderModel", {"_attn_implementation_internal": "who/kernel"}),
        ("text_encoder", "T5EncoderModel", {"experts_implementation": "who/kernel@main:f"}),
        ("text_encoder", "T5EncoderModel", {"sub": {"_attn_implementation": {"": "who/kernel"}}}),
    ],
)
@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
def test_a_config_that_names_code_is_refused(
    name: str, entry: str, config: Any, file: str, folder: Path
) -> None:
    write(folder, **{name: ["transformers", entry]})
    check(folder)
    (folder / name / file).write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(ModelError, match=NEVER):
        check(folder)


@pytest.mark.parametrize(
    ("name", "file", "config"),
    [
        ("vae", "config.json", {"layers_per_block": 10**7}),
        ("vae", "config.json", {"layers_per_block": [2, 10**7]}),
        ("text_encoder", "config.json", {"text_config": {"num_hidden_layers": 10**6}}),
        ("scheduler", "scheduler_config.json", {"num_train_timesteps": 10**8}),
        ("scheduler", "scheduler_config.json", {"num_train_timesteps": float("inf")}),
    ],
)
def test_counts_that_would_be_built_without_end_are_refused(
    name: str, file: str, config: Any, folder: Path
) -> None:
    (folder / name).mkdir(exist_ok=True)
    (folder / name / file).write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(ModelError, match="expected at most"):
        check(folder)


def test_numbers_that_the_libraries_write_for_no_limit_are_taken(folder: Path) -> None:
    from diffusers import DPMSolverMultistepScheduler

    DPMSolverMultistepScheduler().save_config(folder / "scheduler")
    text = (folder / "scheduler" / "scheduler_config.json").read_text(encoding="utf-8")
    assert '"lambda_min_clipped": -Infinity' in text
    config = json.dumps({"model_max_length": int(1e30)})
    (folder / "tokenizer" / "tokenizer_config.json").write_text(config, encoding="utf-8")
    check(folder)


def test_an_adapter_that_names_another_model_is_refused(folder: Path) -> None:
    """transformers would read that model's config, from wherever it lies."""
    config = json.dumps({"base_model_name_or_path": "/elsewhere", "megatron_core": "os"})
    (folder / "text_encoder" / "adapter_config.json").write_text(config, encoding="utf-8")
    with pytest.raises(ModelError, match=NEVER):
        check(folder)


def test_what_a_class_of_its_own_ignores_is_taken(folder: Path) -> None:
    """Configs of the hub name remote code beside a class that transformers has."""
    config = {"auto_map": {"AutoModel": "mine.Mine"}, "attn_implementation": "sdpa"}
    (folder / "text_encoder" / "config.json").write_text(json.dumps(config), encoding="utf-8")
    check(folder)


def test_missing_packages_are_named(folder: Path, monkeypatch) -> None:
    import transformers

    class Missing:
        _backends = ("sentencepiece",)

    Missing.__module__ = "transformers.utils.dummy_sentencepiece_objects"
    monkeypatch.setattr(transformers, "T5TokenizerFast", Missing, raising=False)
    with pytest.raises(ModelError, match=r"'tokenizer' is a T5TokenizerFast .*sentencepiece"):
        check(folder)


def test_the_extra_is_named_where_the_pipeline_or_its_tokenizer_lacks_packages(
    folder: Path, monkeypatch
) -> None:
    import diffusers

    class Missing:
        _backends = ("torch", "no_such_transformers")

    Missing.__module__ = "diffusers.utils.dummy_torch_and_transformers_objects"
    with monkeypatch.context() as patch:
        patch.setattr(diffusers, "PixArtSigmaPipeline", Missing)
        match = r"PixArtSigmaPipeline, which .*\(no_such_transformers\).*'ditprune\[text\]'"
        with pytest.raises(ModelError, match=match):
            check(folder)
    (folder / "tokenizer" / "spiece.model").touch()
    monkeypatch.setattr(components, "version", partial(installed, set()))
    with pytest.raises(ModelError, match=r"spiece\.model: .*\(sentencepiece, protobuf\).*\[text\]"):
        check(folder)
    monkeypatch.setattr(components, "version", partial(installed, {"sentencepiece", "protobuf"}))
    check(folder)
    monkeypatch.undo()
    (folder / "tokenizer" / "tokenizer.json").touch()
    check(folder)


def installed(packages: set[str], name: str) -> str:
    if name not in packages:
        raise PackageNotFoundError(name)
    return "1"


def test_the_extra_holds_what_the_message_promises() -> None:
    file = Path(__file__).parents[2] / "pyproject.toml"
    pyproject = tomllib.loads(file.read_text(encoding="utf-8"))
    text = " ".join(pyproject["project"]["optional-dependencies"]["text"])
    for package in ("transformers", *components._OF_SENTENCEPIECE):
        assert package in text
