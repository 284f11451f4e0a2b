"""A LoRA of the base, cut to fit the shrunk base; or refused in one line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ditprune.errors import DitpruneError
from ditprune.shrinking.lora import ShrunkLora, shrink_lora
from folders import edit_json
from shrunk_by_hand import DIT, FLUX, LAYER, carry_out_, dense_tiny, described, what_goes
from tiny_denoisers import FAMILIES, Draw

RANK = 3
LAYERS = {
    FLUX: (
        "attn.to_q", "attn.add_k_proj", "attn.to_out.0", "attn.to_add_out", "ff.net.0.proj",
        "ff.net.2", "proj_mlp", "proj_out", "attn.to_v",
    ),
    DIT: ("attn1.to_k", "attn1.to_out.0", "ff.net.0.proj", "ff.net.2"),
}  # fmt: skip
A, B = ("lora_A.weight", "lora.down.weight"), ("lora_B.weight", "lora.up.weight")


@pytest.fixture(scope="module", params=[FLUX, DIT])
def small(request, tmp_path_factory) -> tuple[str, Path]:
    denoiser = dense_tiny(request.param)
    place = tmp_path_factory.mktemp("lora") / "small"
    return request.param, described(denoiser, what_goes(denoiser), place)


def lora_of(name: str, seed: int = 0) -> dict[str, tuple[Tensor, Tensor]]:
    """By layer, A and B."""
    generator = torch.Generator().manual_seed(seed)
    pairs = {}
    for path, layer in dense_tiny(name).named_modules():
        if path.endswith(LAYERS[name]) and ("blocks." in path) and isinstance(layer, nn.Linear):
            num_out, num_in = layer.weight.shape
            pairs[path] = (
                torch.randn(RANK, num_in, generator=generator),
                torch.randn(num_out, RANK, generator=generator) / 10,
            )
    return pairs


def saved(pairs: Any, file: Path, prefix: str = "transformer.", words: int = 0) -> Path:
    tensors = {}
    for path, (down, up) in pairs.items():
        tensors[f"{prefix}{path}.{A[words]}"] = down
        tensors[f"{prefix}{path}.{B[words]}"] = up
        tensors[f"{prefix}{path}.alpha"] = torch.tensor(2.0)
    tensors["text_encoder.layers.0.q_proj.lora_A.weight"] = torch.ones(1, 2)
    save_file(tensors, file, {"format": "pt"})
    return file


@torch.no_grad()
def merged(denoiser: nn.Module, tensors: dict[str, Tensor], prefix: str, words: int) -> nn.Module:
    for key, up in tensors.items():
        if key.endswith(B[words]):
            layer = key.removeprefix(prefix).removesuffix(f".{B[words]}")
            down = tensors[f"{prefix}{layer}.{A[words]}"]
            denoiser.get_submodule(layer).weight += up @ down
    return denoiser


def output(denoiser: nn.Module, name: str) -> Tensor:
    with torch.no_grad():
        return denoiser.eval()(**FAMILIES[name].call(Draw(5)), return_dict=False)[0]


def loaded(name: str, folder: Path) -> nn.Module:
    import diffusers

    return getattr(diffusers, name).from_pretrained(folder)


@pytest.mark.parametrize(("prefix", "words"), [("transformer.", 0), ("", 1)])
def test_cut_and_added_is_added_and_cut(small, prefix, words, tmp_path) -> None:
    name, folder = small
    file = saved(lora_of(name), tmp_path / "lora.safetensors", prefix, words)
    outcome = shrink_lora(file, tmp_path / "small.safetensors", folder)
    tensors = load_file(tmp_path / "small.safetensors")
    got = merged(loaded(name, folder), tensors, prefix, words)
    dense = dense_tiny(name)
    went = what_goes(dense)
    expected = merged(dense, load_file(file), prefix, words)
    carry_out_(expected, went)
    largest = output(expected, name).abs().max()
    assert (output(got, name) - output(expected, name)).abs().max() <= 1e-5 * largest
    plain = output(loaded(name, folder), name)
    assert (output(got, name) - plain).abs().max() > 0.01 * largest
    assert outcome.num_layers == len(lora_of(name))
    assert outcome.cut
    assert outcome.left_out
    assert "text_encoder.layers.0.q_proj.lora_A.weight" in tensors
    with safe_open(tmp_path / "small.safetensors", "pt") as stream:
        assert stream.metadata() == {"format": "pt"}


def test_what_diffusers_saves_loads_into_the_shrunk_denoiser(tmp_path) -> None:
    pytest.importorskip("peft")
    dense = dense_tiny(FLUX)
    folder = described(dense_tiny(FLUX), what_goes(dense), tmp_path / "small")
    tensors = {
        f"{path}.{word}": matrix
        for path, pair in lora_of(FLUX).items()
        for word, matrix in zip((A[0], B[0]), pair, strict=True)
    }
    dense.load_lora_adapter(tensors, prefix=None, adapter_name="mine")
    dense.save_lora_adapter(tmp_path / "lora", adapter_name="mine")
    file = tmp_path / "lora" / "pytorch_lora_weights.safetensors"
    out = tmp_path / "small.safetensors"
    shrink_lora(file, out, folder)
    denoiser = loaded(FLUX, folder)
    plain = output(denoiser, FLUX)
    denoiser.load_lora_adapter(out, prefix=None)
    expected = merged(loaded(FLUX, folder), load_file(out), "", 0)
    largest = output(expected, FLUX).abs().max()
    assert (output(denoiser, FLUX) - output(expected, FLUX)).abs().max() <= 1e-5 * largest
    assert (output(denoiser, FLUX) - plain).abs().max() > 0.01 * largest


def test_names_in_its_metadata_move_along(tmp_path) -> None:
    denoiser = dense_tiny(FLUX)
    folder = described(denoiser, what_goes(denoiser), tmp_path / "small")
    block = "single_transformer_blocks"
    path = f"{block}.1.proj_out"
    num_in = denoiser.get_submodule(f"{block}.0.proj_out").in_features
    tensors = pair(path, num_in=num_in)
    rest = {k.replace(".1.", ".0."): t.clone() for k, t in tensors.items()}
    words = {"r": 2, "rank_pattern": {path: 2}, "target_modules": [f"{block}.0.proj_out", path]}
    file = tmp_path / "lora.safetensors"
    save_file({**tensors, **rest}, file, {"lora_adapter_metadata": json.dumps(words)})
    outcome = shrink_lora(file, tmp_path / "out.safetensors", folder)
    moved = f"{block}.0.proj_out"
    assert outcome == ShrunkLora(2, (), (moved,))
    with safe_open(tmp_path / "out.safetensors", "pt") as stream:
        assert json.loads(stream.metadata()["lora_adapter_metadata"]) == {
            "r": 2, "rank_pattern": {moved: 2}, "target_modules": [moved],
        }  # fmt: skip
        assert set(stream.keys()) == {f"{moved}.lora_A.weight", f"{moved}.lora_B.weight"}


FIRST = "transformer_blocks.0.attn1.to_k"
GONE = "transformer_blocks.1.attn1.to_k"


def pair(layer: str, num_out: int = 32, num_in: int = 32, rank: int = 2) -> dict[str, Tensor]:
    return {
        f"{layer}.lora_A.weight": torch.ones(2, num_in),
        f"{layer}.lora_B.weight": torch.ones(num_out, rank),
    }


REFUSED: dict[str, tuple[Callable[[], dict[str, Tensor]], str]] = {
    "on what became two": (
        lambda: pair(LAYER[DIT], 192), f"lies on {LAYER[DIT]}.*rank 4; merge.*--like|like",
    ),
    "of another model": (lambda: pair("blocks.7.attn.to_q"), "no layer of the base"),
    "of another width": (lambda: pair(FIRST, 48), r"B is \[48, 2\] .* is \[32, 32\] in the base"),
    "of two ranks": (lambda: pair(FIRST, rank=3), r"A is \[2, 32\] and B is \[32, 3\]"),
    "one half": (lambda: dict([*pair(FIRST).items()][:1]), f"1 A and 0 B on {FIRST}"),
    "named by kohya": (lambda: {"lora_unet_a.lora_up.weight": torch.ones(2, 2)}, "as kohya's"),
    "DoRA": (
        lambda: {**pair(FIRST), f"{FIRST}.lora_magnitude_vector": torch.ones(32)}, "no part",
    ),
    "all gone": (lambda: pair(GONE), "nothing of it is left"),
    "none": (lambda: {"text_encoder.a.lora_A.weight": torch.ones(2, 2)}, "holds no LoRA"),
}  # fmt: skip


@pytest.fixture(scope="module")
def small_dit(tmp_path_factory) -> Path:
    denoiser = dense_tiny(DIT)
    return described(denoiser, what_goes(denoiser), tmp_path_factory.mktemp("dit") / "small")


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_one_line(case, small_dit, tmp_path) -> None:
    make, told = REFUSED[case]
    file, out = tmp_path / "lora.safetensors", tmp_path / "out.safetensors"
    save_file(make(), file)
    with pytest.raises(DitpruneError, match=told) as caught:
        shrink_lora(file, out, small_dit)
    assert "\n" not in str(caught.value)
    assert not out.exists()


def test_files_that_cannot_be_written_or_read_are_one_line(small_dit, tmp_path) -> None:
    file = tmp_path / "lora.safetensors"
    save_file(pair(FIRST), file)
    before = file.read_bytes()
    taken = tmp_path / "taken.safetensors"
    taken.write_bytes(b"mine")
    other = tmp_path / "lora.bin"
    other.write_bytes(b"pickle")
    beside = small_dit.with_name(f"{small_dit.name}-before")
    for given, words in [
        ((file, file, small_dit, True), "is the LoRA itself"),
        ((file, taken, small_dit, False), "exists"),
        ((other, taken, small_dit, True), "lora.bin: a LoRA is read from"),
        ((file, other, small_dit, True), "lora.bin: a LoRA is read from"),
        ((taken, tmp_path / "o.safetensors", small_dit, False), "not a complete safetensors"),
        ((file, tmp_path / "o.safetensors", beside, False), "ditprune.json"),
    ]:
        with pytest.raises(DitpruneError, match=words):
            shrink_lora(*given)
    assert (file.read_bytes(), taken.read_bytes()) == (before, b"mine")
    shrink_lora(file, taken, small_dit, overwrite=True)
    assert load_file(taken)[f"{FIRST}.lora_B.weight"].shape[0] < 32


def _runs(claims: dict[str, Any]) -> list[Any]:
    group = next(g for g in claims["groups"].values() if len(g["kept"]) < g["num_units"])
    return next(iter(next(iter(group["parts"].values())).values()))[0]


HOSTILE: dict[str, Callable[[dict[str, Any]], Any]] = {
    "beyond": lambda c: _runs(c).__setitem__(0, 10_000),
    "below": lambda c: _runs(c).__setitem__(0, -1),
    "no step": lambda c: _runs(c).__setitem__(2, 0),
    "long": lambda c: _runs(c).__setitem__(1, 10**15),
    "a word": lambda c: _runs(c).__setitem__(1, "x"),
    "no runs": lambda c: c["groups"].__setitem__("x", 3),
    "no tensor": lambda c: c["base"].pop("shapes"),
    "a kind": lambda c: next(iter(c["groups"].values())).update(kind="ears"),
    "half a unit": lambda c: next(iter(c["groups"].values())).update(kept=[0.5]),
    "a rank": lambda c: next(iter(c["ranks"].values())).update(rank=-2),
    "a block": lambda c: c["blocks"].update(transformer_blocks=[2, 0]),
    "an error": lambda c: next(iter(c["groups"].values())).update(error="x"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_manifest_is_not_trusted(case, small_dit, tmp_path) -> None:
    folder = Path(shutil.copytree(small_dit, tmp_path / "copy"))
    edit_json(folder / "ditprune.json", HOSTILE[case])
    file = tmp_path / "lora.safetensors"
    save_file(pair(FIRST), file)
    with pytest.raises(DitpruneError, match=r"ditprune\.json: "):
        shrink_lora(file, tmp_path / "o.safetensors", folder)


def test_from_the_command_line(small_dit, ditprune, tmp_path) -> None:
    file, out = tmp_path / "lora.safetensors", tmp_path / "out.safetensors"
    save_file({**pair(FIRST), **pair(GONE)}, file)
    code, printed, _ = ditprune("shrink", file, "-o", out, "--like", small_dit)
    assert code == 0
    assert "2 layers, 1 of them went with their blocks; 1 are smaller" in printed
    assert load_file(out)[f"{FIRST}.lora_B.weight"].shape[0] < 32
    more = ["--overwrite", "--ratio", 0.3]
    code, _, err = ditprune("shrink", file, "-o", out, "--like", small_dit, *more)
    assert (code, "error: --like and --ratio exclude each other" in err) == (2, True)
