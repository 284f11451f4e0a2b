"""Compact folders in diffusers: dense models bit for bit, in bounded memory, or a word on how."""

from __future__ import annotations

import copy
import json
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import ditprune  # noqa: F401  (diffusers learns of compact folders by it)
from ditprune import prune_
from ditprune.checkpoints.locate import locate
from ditprune.errors import ModelError
from ditprune.pruning.convert import to_compact
from folders import STEM, add_denoiser, edit_json, edit_tensors, save_denoiser, save_pipeline
from nearly_fresh import Run, nearly_fresh
from shrunk_by_hand import shrunk_tiny

NAME = "transformer_blocks.1.attn1.to_q.weight"


def compact(folder: Path) -> Path:
    out = folder.with_name(f"{folder.name}-compact")
    to_compact(locate(str(folder)), out)
    return out


def pruned(denoiser: nn.Module, **words: Any) -> nn.Module:
    prune_(denoiser, saliency="magnitude", **words)
    return denoiser


@pytest.fixture
def folders(tiny_dit, tmp_path) -> Callable[..., tuple[Path, Path]]:
    """A pruned denoiser's folder, dense and compact."""

    def make(dtype: torch.dtype = torch.bfloat16, **options: Any) -> tuple[Path, Path]:
        folder = save_denoiser(pruned(tiny_dit().to(dtype)), tmp_path / "dense", dtype, **options)
        return folder, compact(folder)

    return make


@pytest.fixture(scope="module")
def fresh(tmp_path_factory) -> Iterator[Run]:
    """Runs code in a process that has imported neither diffusers nor ditprune."""
    with nearly_fresh(tmp_path_factory.mktemp("fresh")) as run:
        yield run


def same_model(one: Any, other: Any) -> None:
    assert type(one) is type(other)
    states = [model.state_dict() for model in (one, other)]
    assert states[0].keys() == states[1].keys()
    for name, tensor in states[0].items():
        assert tensor.dtype == states[1][name].dtype
        raw = [state[name].contiguous().reshape(-1).view(torch.uint8) for state in states]
        assert torch.equal(*raw), name


def load(folder: Path, **options: Any) -> Any:
    from diffusers import DiTTransformer2DModel

    return DiTTransformer2DModel.from_pretrained(folder, **options)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("wanted", [None, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", ["10GB", "60KB"], ids=["one file", "shards"])
def test_the_same_model_is_loaded(folders, dtype, wanted, size) -> None:
    dense, small = folders(dtype, max_shard_size=size)
    options = {} if wanted is None else {"torch_dtype": wanted}
    same_model(load(small, **options), load(dense, **options))


def test_a_pipeline_just_works(tiny_dit, tmp_path) -> None:
    from diffusers import DiTPipeline

    folder = save_pipeline(pruned(tiny_dit()), tmp_path / "model")
    pipelines = [DiTPipeline.from_pretrained(f) for f in (folder, compact(folder))]
    same_model(*(pipeline.transformer for pipeline in pipelines))
    images = []
    for pipeline in pipelines:
        pipeline.set_progress_bar_config(disable=True)
        generator = torch.Generator().manual_seed(0)
        images.append(
            pipeline([0, 1], num_inference_steps=2, generator=generator, output_type="np").images
        )
    assert (images[0] == images[1]).all()


def test_so_does_one_with_two_denoisers(tiny_dit, tmp_path) -> None:
    from diffusers import DiTTransformer2DModel

    folder = save_pipeline(pruned(tiny_dit()), tmp_path / "model")
    add_denoiser(folder, pruned(tiny_dit(1), sparsity=0.7))
    small = compact(folder)
    for name in ("transformer", "transformer_2"):
        same_model(
            *(DiTTransformer2DModel.from_pretrained(f, subfolder=name) for f in (folder, small))
        )


def test_what_a_class_keeps_in_float32_is_kept(tmp_path) -> None:
    from diffusers import WanTransformer3DModel

    torch.manual_seed(0)
    denoiser = WanTransformer3DModel(
        patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12, in_channels=4,
        out_channels=4, text_dim=16, freq_dim=16, ffn_dim=32, num_layers=2,
    )  # fmt: skip
    folder = save_denoiser(pruned(denoiser), tmp_path / "model")
    small = compact(folder)
    models = [
        WanTransformer3DModel.from_pretrained(f, torch_dtype=torch.bfloat16)
        for f in (folder, small)
    ]
    same_model(*models)
    assert {p.dtype for p in models[1].parameters()} == {torch.float32, torch.bfloat16}


def test_what_is_loaded_is_an_ordinary_model(folders, tmp_path) -> None:
    """It casts, is pruned again, and saves a folder that needs nothing of ours."""
    dense, small = folders(torch.float32)
    model = load(small)
    assert not any(parameter.is_meta for parameter in model.parameters())
    assert not getattr(model, "is_quantized", False)
    assert model.half().dtype == torch.float16
    assert model.float().to(torch.float64).dtype == torch.float64
    assert pruned(model.float(), sparsity=0.7).dtype == torch.float32
    same_model(model.dequantize(), model)
    model = load(small)
    model.save_pretrained(tmp_path / "saved")
    config, expected = (
        json.loads((folder / "config.json").read_text()) for folder in (tmp_path / "saved", dense)
    )
    assert {**config, "_name_or_path": None} == {**expected, "_name_or_path": None}
    same_model(load(tmp_path / "saved"), load(dense))


def test_a_loaded_model_is_pickled_and_copied(folders, tmp_path) -> None:
    dense, small = folders()
    model, expected = load(small), load(dense)
    raw = pickle.dumps(model)
    assert str(small / STEM).encode() not in raw  # its files may be gone
    same_model(pickle.loads(raw), expected)
    copied = copy.deepcopy(model)
    same_model(copied, expected)
    copied.save_pretrained(tmp_path / "saved")
    same_model(load(tmp_path / "saved"), expected)


def test_another_process_takes_a_pickled_model(folders, fresh, tmp_path) -> None:
    """As processes that are spawned do, which have imported nothing; a shrunk one too."""
    dense, small = folders()
    shrunk = shrunk_tiny("DiTTransformer2DModel")
    torch.save([load(small), shrunk], tmp_path / "models.pt")
    code = f"""
import torch
model, shrunk = torch.load({str(tmp_path / "models.pt")!r}, weights_only=False)
model.save_pretrained({str(tmp_path / "saved")!r})
shrunk.save_pretrained({str(tmp_path / "shrunk")!r})
"""
    assert fresh(code)[0] == 0
    same_model(load(tmp_path / "saved"), load(dense))
    same_model(load(tmp_path / "shrunk"), shrunk)


def test_the_classes_that_diffusers_knows_have_names() -> None:
    from diffusers.quantizers.auto import AUTO_QUANTIZER_MAPPING

    from ditprune.runtime import diffusers_loader as quantizer

    assert AUTO_QUANTIZER_MAPPING["ditprune"] is quantizer.DitpruneQuantizer
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = quantizer.Nothing


@pytest.mark.parametrize("first", ["ditprune", "diffusers", "diffusers.quantizers"])
def test_the_order_of_imports_does_not_matter(folders, fresh, first) -> None:
    _, small = folders()
    second = "diffusers" if first == "ditprune" else "ditprune"
    code = f"""
import sys, {first}
assert ("diffusers" in sys.modules) == ({first!r} != "ditprune")
import {second}
from diffusers import DiTTransformer2DModel
DiTTransformer2DModel.from_pretrained({str(small)!r})
import diffusers.quantizers.auto as auto
assert "ditprune" in auto.AUTO_QUANTIZER_MAPPING
assert type(auto.__spec__.loader).__name__ == "SourceFileLoader"
assert not any("_Waiting" in type(finder).__name__ for finder in sys.meta_path)
"""
    assert fresh(code)[0] == 0


def test_looking_for_the_module_without_importing_it_does_no_harm(fresh) -> None:
    code = """
import importlib.util, sys, ditprune
ditprune._register()
assert sum("_Waiting" in type(finder).__name__ for finder in sys.meta_path) == 1
import diffusers
for _ in range(2):
    importlib.util.find_spec("diffusers.utils")
spec = [f for f in sys.meta_path if "_Waiting" in type(f).__name__][0].find_spec
assert spec("diffusers.other", None) is None
import diffusers.quantizers.auto as auto
assert "ditprune" in auto.AUTO_QUANTIZER_MAPPING
"""
    assert fresh(code)[0] == 0


@pytest.mark.parametrize("kind", ["compact", "shrunk"])
def test_without_the_import_the_error_says_what_to_do(folders, fresh, kind, tmp_path) -> None:
    _, small = folders()
    if kind == "shrunk":
        small = save_denoiser(shrunk_tiny("DiTTransformer2DModel"), tmp_path / "shrunk")
    code = f"""
from diffusers import DiTTransformer2DModel
DiTTransformer2DModel.from_pretrained({str(small)!r})
"""
    returned, told = fresh(code)
    assert returned == 1
    last = told.strip().splitlines()[-1]
    assert "do `pip install ditprune` and `import ditprune` before loading" in last


PEAK = """
import os, sys, torch, ditprune
torch.set_num_threads(1)
from diffusers import DiTTransformer2DModel
warm, *folders = sys.argv[1:]
DiTTransformer2DModel.from_pretrained(warm, torch_dtype=torch.bfloat16)
def status(key):
    with open("/proc/self/status") as lines:
        return next(int(l.split()[1]) << 10 for l in lines if l.startswith(key))
for folder in folders:
    child = os.fork()
    if child:
        assert os.waitpid(child, 0)[1] == 0
        continue
    open("/proc/self/clear_refs", "w").write("5")
    before = status("VmHWM:")
    model = DiTTransformer2DModel.from_pretrained(folder, torch_dtype=torch.bfloat16)
    model_bytes = sum(p.numel() * p.element_size() for p in model.parameters())
    print(status("VmHWM:") - before, model_bytes, flush=True)
    os._exit(0)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads peaks from Linux")
def test_the_peak_of_loading_is_the_dense_model_and_one_layer(folders, tmp_path) -> None:
    """From one file, and from shards."""
    from diffusers import DiTTransformer2DModel
    from diffusers.quantizers.base import DiffusersQuantizer

    if not hasattr(DiffusersQuantizer, "maybe_update_loaded_keys"):
        pytest.skip("this diffusers does not say which files it loads")
    torch.manual_seed(0)
    with torch.device("meta"):
        denoiser = DiTTransformer2DModel(
            num_attention_heads=16, attention_head_dim=64, num_layers=5, in_channels=4,
            out_channels=4, sample_size=8, patch_size=2, num_embeds_ada_norm=10,
        )  # fmt: skip
    denoiser = denoiser.to_empty(device="cpu").to(torch.bfloat16)
    for parameter in denoiser.parameters():
        parameter.data.fill_(0.5)
        parameter.data.view(-1)[::2] = 0
    largest_bytes = max(p.numel() * p.element_size() for p in denoiser.parameters())
    large = [
        compact(save_denoiser(denoiser, tmp_path / size, torch.bfloat16, max_shard_size=size))
        for size in ("10GB", "25MB")
    ]
    warm, _ = folders()
    ran = subprocess.run(
        [sys.executable, "-c", PEAK, str(warm), *map(str, large)],
        capture_output=True, text=True, timeout=900, check=True,
    )  # fmt: skip
    lines = ran.stdout.splitlines()
    assert len(lines) == 2
    for line in lines:
        peak_bytes, model_bytes = map(int, line.split())
        assert model_bytes > 125e6
        # A layer's dense bytes, its packed bytes, and room for what chunks of it take.
        assert peak_bytes <= model_bytes + 2 * largest_bytes + 16e6


def refused(folder: Path, match: str, **options: Any) -> None:
    with pytest.raises((ModelError, ImportError), match=match):
        load(folder, **options)


def test_hostile_packed_weights_are_refused_by_name(folders) -> None:
    _, small = folders()
    edit_tensors(small / f"{STEM}.safetensors", lambda tensors: tensors[NAME][24:32].fill_(255))
    refused(small, rf"{STEM}.safetensors: {NAME}: not a packed weight")


def test_a_weight_packed_for_another_place_is_refused(folders) -> None:
    _, small = folders()
    other = NAME.replace("attn1.to_q", "ff.net.2")
    edit_tensors(
        small / f"{STEM}.safetensors",
        lambda tensors: tensors.update({NAME: tensors[other].clone()}),
    )
    refused(small, rf"{NAME}: packed as BF16 \[32, 128\], expected BF16 \[32, 32\]")


def test_another_format_is_refused(folders) -> None:
    _, small = folders()
    edit_json(small / "config.json", lambda c: c["quantization_config"].update(format=9))
    refused(small, "compact format 9, this ditprune reads 1")


def test_options_that_would_lose_weights_are_refused(folders, tmp_path) -> None:
    from diffusers.quantizers.base import DiffusersQuantizer

    _, small = folders()
    if hasattr(DiffusersQuantizer, "maybe_update_loaded_keys"):
        refused(small, "leave ignore_mismatched_sizes out", ignore_mismatched_sizes=True)
    options = {"device_map": {"": "disk"}, "offload_folder": str(tmp_path / "offload")}
    refused(small, "cannot be offloaded to disk", **options)


def test_a_device_map_places_dense_weights(folders) -> None:
    dense, small = folders()
    same_model(load(small, device_map={"": "cpu"}), load(dense, device_map={"": "cpu"}))


def test_another_quantiser_of_a_compact_folder_is_refused(folders) -> None:
    """diffusers would warn, and give the dense model."""
    from diffusers import BitsAndBytesConfig

    _, small = folders()
    config = BitsAndBytesConfig(load_in_8bit=True)
    refused(small, r"compact.* convert FOLDER --to dense", quantization_config=config)


def test_asking_to_quantise_while_loading_is_refused(folders) -> None:
    from diffusers.quantizers.auto import DiffusersAutoQuantizer

    dense, _ = folders()
    config = DiffusersAutoQuantizer.from_dict({"quant_method": "ditprune"})
    refused(dense, "packs folders", quantization_config=config)
