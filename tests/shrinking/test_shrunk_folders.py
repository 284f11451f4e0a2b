"""Shrunk folders in diffusers: the same model, loaded, saved, quantised; or a word on how."""

from __future__ import annotations

import copy
import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ditprune  # noqa: F401  (diffusers learns of shrunk folders by it)
from ditprune.checkpoints.shrunk.form import Form, mark_, shrunk_form
from ditprune.checkpoints.shrunk.resize import resize_
from ditprune.checkpoints.skeleton import skeleton
from ditprune.errors import ModelError
from folders import STEM, edit_json, edit_tensors, save_denoiser, save_pipeline
from shrunk_by_hand import CUTS, dense_tiny, shrunk_tiny
from tiny_denoisers import FAMILIES, Draw

NAMES = tuple(CUTS)
DIT, FLUX = NAMES


@torch.no_grad()
def output(denoiser: Any) -> Tensor:
    call = FAMILIES[type(denoiser).__name__].call(Draw(0))
    dtype = next(denoiser.parameters()).dtype
    call = {k: v.to(dtype) if torch.is_floating_point(v) else v for k, v in call.items()}
    return denoiser(**call, return_dict=False)[0]


def load(folder: Path, **options: Any) -> Any:
    import diffusers

    name = json.loads((folder / "config.json").read_text())["_class_name"]
    return getattr(diffusers, name).from_pretrained(folder, **options)


def same_model(one: Any, other: Any) -> None:
    states = [model.state_dict() for model in (one, other)]
    assert states[0].keys() == states[1].keys()
    for name, tensor in states[0].items():
        assert tensor.dtype == states[1][name].dtype
        assert torch.equal(tensor, states[1][name]), name
    if one.dtype == torch.float32:  # diffusers keeps some buffers in it where it loads others
        assert torch.equal(output(one), output(other))


WAYS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "one file": ({}, {}),
    "shards": ({"max_shard_size": "60KB"}, {}),
    "a variant": ({"variant": "fp16"}, {"variant": "fp16"}),
    "bfloat16": ({}, {"torch_dtype": torch.bfloat16}),
    "a device map": ({}, {"device_map": {"": "cpu"}}),
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("way", WAYS)
def test_what_is_saved_is_loaded_and_saved_again(name, way, tmp_path) -> None:
    saving, loading = WAYS[way]
    denoiser = shrunk_tiny(name)
    folder = save_denoiser(denoiser, tmp_path / "small", **saving)
    loaded = load(folder, **loading)
    same_model(loaded, denoiser.to(loaded.dtype))
    assert shrunk_form(loaded) == shrunk_form(denoiser)
    loaded.save_pretrained(tmp_path / "again", **saving)
    same_model(load(tmp_path / "again", **loading), denoiser)


@pytest.fixture(scope="module", params=NAMES)
def saved(request, tmp_path_factory) -> tuple[nn.Module, Path]:
    """A shrunk denoiser and its folder; never changed by a test."""
    denoiser = shrunk_tiny(request.param)
    return denoiser, save_denoiser(denoiser, tmp_path_factory.mktemp("shrunk") / "small")


@pytest.fixture
def folder(saved, tmp_path) -> Path:
    """A copy of the folder."""
    return Path(shutil.copytree(saved[1], tmp_path / "copy"))


def test_what_is_loaded_casts_copies_and_travels(saved, tmp_path) -> None:
    denoiser, folder = saved
    loaded = load(folder)
    assert not getattr(loaded, "is_quantized", False)
    assert "quantization_config" not in loaded.config
    assert loaded.half().dtype == torch.float16
    loaded = load(folder)
    raw = pickle.dumps(loaded)
    assert str(folder).encode() + b"/diffusion" not in raw  # its files may be gone
    for model in (pickle.loads(raw), copy.deepcopy(loaded), loaded.dequantize()):
        same_model(model, denoiser)
        model.save_pretrained(tmp_path / "again")
        same_model(load(tmp_path / "again"), denoiser)


def test_a_pipeline_just_works(tmp_path) -> None:
    from diffusers import DiTPipeline

    denoiser = shrunk_tiny(DIT)
    folder = save_pipeline(denoiser, tmp_path / "model")
    pipeline = DiTPipeline.from_pretrained(folder)
    same_model(pipeline.transformer, denoiser)
    pipeline.save_pretrained(tmp_path / "again")
    same_model(load(tmp_path / "again" / "transformer"), denoiser)


def test_the_module_tree_is_that_of_the_model(saved) -> None:
    denoiser, folder = saved
    tree = skeleton(folder)
    assert {n: p.shape for n, p in tree.named_parameters()} == {
        n: p.shape for n, p in denoiser.named_parameters()
    }
    assert all(parameter.is_meta for parameter in tree.parameters())
    assert shrunk_form(tree) == shrunk_form(denoiser)


def test_neurons_alone_need_no_more_than_a_mark(tmp_path) -> None:
    denoiser = dense_tiny(DIT)
    ff = denoiser.transformer_blocks[1].ff.net
    fc1, fc2 = ff[0].proj, ff[2]
    tensors = {"0.proj.weight": fc1.weight[:16], "0.proj.bias": fc1.bias[:16]}
    resize_(ff, tensors | {"2.weight": fc2.weight[:, :16].clone()}, {})
    mark_(denoiser, Form())
    same_model(load(save_denoiser(denoiser, tmp_path / "small")), denoiser)


def test_a_dense_model_from_the_config_of_a_shrunk_one_is_saved_as_it_is(saved, tmp_path) -> None:
    denoiser, _ = saved
    dense = type(denoiser).from_config(denoiser.config).eval()
    folder = save_denoiser(dense, tmp_path / "dense")
    assert "quantization_config" not in (folder / "config.json").read_text()
    same_model(load(folder), dense)


def test_a_model_that_was_changed_since_is_not_saved(tmp_path) -> None:
    denoiser = shrunk_tiny(DIT)
    denoiser.transformer_blocks[0].attn1.heads = 2
    with pytest.raises(ModelError, match="no longer those that its config says"):
        denoiser.save_pretrained(tmp_path / "small")


# --- Other quantisers, while loading and in memory ---


def _torchao(model: Any) -> None:
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    quantize_(model, Int8WeightOnlyConfig())


def _quanto(model: Any) -> None:
    from optimum.quanto import freeze, qint8, quantize

    quantize(model, weights=qint8)
    freeze(model)


SMALL = {"minimum_allowed_numel": 1, "minimum_allowed_channel_size": 1}


def _sdnq(model: Any) -> None:
    from sdnq import sdnq_post_load_quant

    sdnq_post_load_quant(model, weights_dtype="int8", **SMALL)


def _torchao_config() -> Any:
    from diffusers import TorchAoConfig
    from torchao.quantization import Int8WeightOnlyConfig

    return TorchAoConfig(Int8WeightOnlyConfig())


def _quanto_config() -> Any:
    from diffusers import QuantoConfig

    return QuantoConfig("int8")


def _sdnq_config() -> Any:
    from sdnq import SDNQConfig

    return SDNQConfig(weights_dtype="int8", **SMALL)


QUANTISERS = {
    "torchao": (_torchao, _torchao_config),
    "optimum.quanto": (_quanto, _quanto_config),
    "sdnq": (_sdnq, _sdnq_config),
}


@pytest.mark.filterwarnings("ignore")  # of these libraries
@pytest.mark.parametrize("library", QUANTISERS)
def test_other_quantisers_take_the_smaller_layers(saved, library, tmp_path) -> None:
    """Their error on an int8 layer is small, so the layers are those of the shrunk model."""
    pytest.importorskip(library)
    in_memory, config = QUANTISERS[library]
    denoiser, folder = saved
    loaded = load(folder)
    in_memory(loaded)
    options = {"quantization_config": config(), "torch_dtype": torch.float32}
    for quantised in (loaded, load(folder, **options)):
        error = (output(quantised) - output(denoiser)).norm() / output(denoiser).norm()
        assert 0 < error < 0.05
    assert quantised.is_quantized
    quantizer = pickle.loads(pickle.dumps(quantised.hf_quantizer))
    assert type(quantizer) is type(quantised.hf_quantizer)
    with pytest.raises(ModelError, match="quantised is not saved; keep the shrunk folder"):
        quantised.save_pretrained(tmp_path / "again")


# --- Folders of others ---


def _form(config: dict[str, Any]) -> dict[str, Any]:
    return config["quantization_config"]


def _attention(form: dict[str, Any]) -> dict[str, int]:
    return next(v for path, v in form["numbers"].items() if "transformer_blocks.0.attn" in path)


SPOILT: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "another format": (lambda f: f.update(format=2), "format 2, this ditprune reads 1"),
    "a key of others": (lambda f: f.update(code="x"), "code is not known"),
    "a list": (lambda f: f.update(numbers=[]), r"\[\] is no object"),
    "a private number": (
        lambda f: f["numbers"].update({"": {"_gradient": 1}}), "'_gradient' is no name",
    ),
    "a number that is not there": (
        lambda f: f["numbers"].update({"transformer_blocks.0": {"nothing": 1}}),
        "no number 'nothing'",
    ),
    "a flag": (
        lambda f: f["numbers"].update({"transformer_blocks.0": {"training": 1}}),
        "no number 'training'",
    ),
    "a larger number": (
        lambda f: _attention(f).update(inner_dim=4096),
        "inner_dim is 4096; expected a whole number, 1 to 32",
    ),
    "no head": (
        lambda f: _attention(f).update(heads=0), "0 is no whole number from 1",
    ),
    "true heads": (
        lambda f: _attention(f).update(heads=True), "True is no whole number",
    ),
    "a module that is not there": (
        lambda f: f["numbers"].update({"elsewhere": {"heads": 1}}), "has no module 'elsewhere'",
    ),
    "blocks twice": (lambda f: f["blocks"].update(transformer_blocks=[0, 0]), "not ascending"),
    "no blocks": (lambda f: f["blocks"].update(transformer_blocks=[]), "no list of blocks"),
    "a block too far": (
        lambda f: f["blocks"].update(transformer_blocks=[0, 9]), r"\[0, 9\] stay, expected",
    ),
    "blocks of a layer": (lambda f: f["blocks"].update(norm_out=[0]), "expected a list of blocks"),
    "a rank of a norm": (lambda f: f["ranks"].update(norm_out=2), "expected a plain nn.Linear"),
    "a rank too high": (
        lambda f: f["ranks"].update(dict.fromkeys(f["ranks"], 999)), "its rank is 999",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", SPOILT)
def test_a_form_of_others_is_refused_in_one_line(folder, case) -> None:
    change, words = SPOILT[case]
    edit_json(folder / "config.json", lambda config: change(_form(config)))
    for read in (load, skeleton):
        with pytest.raises(ModelError, match=words) as told:
            read(folder)
        assert "\n" not in str(told.value)


def test_tensors_that_do_not_fit_are_refused_in_one_line(folder) -> None:
    def larger(tensors: dict[str, Tensor]) -> None:
        name = next(name for name in tensors if name.endswith("to_q.weight"))
        tensors[name] = torch.zeros(64, 32)

    def without_bias(tensors: dict[str, Tensor]) -> None:
        name = next(name for name in tensors if name.endswith("to_q.weight"))
        tensors[name] = tensors[name][:8].clone()

    file = folder / f"{STEM}.safetensors"
    for change, words in ((without_bias, "rows, its bias"), (larger, r"\[64, 32\], expected at")):
        edit_tensors(file, change)
        for read in (load, skeleton):
            with pytest.raises(ModelError, match=words) as told:
                read(folder)
            assert "\n" not in str(told.value)


def test_a_model_does_not_take_a_form_while_it_is_loaded(tmp_path) -> None:
    from diffusers.quantizers.auto import DiffusersAutoQuantizer

    dense = save_denoiser(FAMILIES[DIT].make(), tmp_path / "dense")
    config = DiffusersAutoQuantizer.from_dict({"quant_method": "ditprune-shrunk", "format": 1})
    with pytest.raises(ModelError, match="ditprune shrink"):
        load(dense, quantization_config=config)


def test_a_form_that_is_shrunk_again() -> None:
    first = Form({"a.3.attn": {"heads": 7}, "a.1": {"x": 2}}, {"a": (0, 1, 3, 5)}, {"a.3.norm": 4})
    second = Form({"a.1.attn": {"heads": 5}}, {"a": (0, 3), "b": (1,)}, {"a.0.norm": 9})
    both = first.then(second)
    assert both.blocks == {"a": (0, 5), "b": (1,)}
    assert both.numbers == {"a.1.attn": {"heads": 5}}
    assert both.ranks == {"a.1.norm": 4, "a.0.norm": 9}
    assert Form.from_config(json.loads(json.dumps(both.to_dict()))) == both
