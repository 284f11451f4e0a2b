"""The module tree from config.json: installed classes only, on the meta device."""

from __future__ import annotations

import sys

import pytest

from ditprune.checkpoints.skeleton import skeleton
from ditprune.errors import ModelError
from ditprune.targets.discover import discover
from folders import edit_json, shards_of


@pytest.fixture
def folder(own_pipeline):
    return own_pipeline / "transformer"


def set_config(folder, **values) -> None:
    edit_json(folder / "config.json", lambda config: config.update(values))


def refused(folder, match: str) -> None:
    with pytest.raises(ModelError, match=match) as caught:
        skeleton(folder)
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)


def test_it_has_the_names_and_shapes_of_the_model_and_no_weights(folder, tiny_dit) -> None:
    shards_of(folder)[0].unlink()
    tree = skeleton(folder)
    assert {p.device.type for p in tree.parameters()} == {"meta"}
    expected = {name: p.shape for name, p in tiny_dit().named_parameters()}
    assert {name: p.shape for name, p in tree.named_parameters()} == expected
    assert discover(tree) == discover(tiny_dit())


def test_an_unknown_class_is_refused_with_the_nearest(folder) -> None:
    set_config(folder, _class_name="DiTTransformer2DModle")
    refused(folder, "'DiTTransformer2DModle' is no denoiser of diffusers.*'DiTTransformer2DModel'")


@pytest.mark.parametrize("name", ["VideoDiTModel", "MyModel", "FluxModel"])
def test_a_class_of_ones_own_is_told_where_it_is_pruned(name, folder) -> None:
    set_config(folder, _class_name=name)
    refused(folder, rf"'{name}' is no denoiser of diffusers.*; load a class of your own in Python")


@pytest.mark.parametrize("name", ["os.system", "nn.Linear", "DiTPipeline", "DDIMScheduler", "", 3])
def test_what_is_no_model_of_diffusers_is_refused(name, folder) -> None:
    set_config(folder, _class_name=name)
    refused(folder, "is no denoiser of diffusers")


def test_a_config_without_class_is_refused(folder) -> None:
    edit_json(folder / "config.json", lambda config: config.pop("_class_name"))
    refused(folder, "class None is no denoiser of diffusers")


def test_code_beside_the_config_is_never_run(folder) -> None:
    mark = folder.parent / "executed"
    code = f"open({str(mark)!r}, 'w')\nclass Model: pass\n"
    for name in ("model.py", "__init__.py", "transformer.py"):
        (folder / name).write_text(code, encoding="utf-8")
    set_config(folder, _class_name="Model", auto_map={"AutoModel": "model.Model"})
    refused(folder, "'Model' is no denoiser of diffusers")
    set_config(folder, _class_name="DiTTransformer2DModel", auto_map={"AutoModel": "model.Model"})
    skeleton(folder)
    assert not mark.exists()
    assert not any(str(folder) in path for path in sys.path)


def test_quantised_weights_are_refused(folder) -> None:
    set_config(folder, quantization_config={"quant_method": "bitsandbytes"})
    refused(folder, "quantised; prune the unquantised checkpoint")


@pytest.mark.parametrize(
    "values",
    [
        {"num_layers": "three"},
        {"attention_head_dim": None},
        {"attention_head_dim": -4},
        {"patch_size": 0},
        {"norm_type": "no_such_norm"},
        {"activation_fn": "no-such-function"},
        {"sample_size": [8]},
    ],
    ids=str,
)
def test_values_that_make_no_model_are_refused(values, folder) -> None:
    set_config(folder, **values)
    refused(folder, "cannot be built from it|no transformer blocks")


def test_a_broken_config_is_refused(folder) -> None:
    (folder / "config.json").write_text("{", encoding="utf-8")
    refused(folder, "cannot be read as JSON")
