"""What ditprune.json says of a shrunk folder, and what `verify` makes of it."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import ditprune
from ditprune.checkpoints.shrunk.form import shrunk_form
from ditprune.shrinking.find import find_groups
from ditprune.shrinking.manifest import Lowered, Went
from ditprune.shrinking.units import Cut
from ditprune.targets.blocks import find_blocks
from ditprune.writing.replaceable import check_replaceable, listed_files
from folders import STEM, edit_json, edit_tensors
from shrunk_by_hand import DIT, FLUX, dense_tiny, described, what_goes


@pytest.fixture(scope="module", params=[DIT, FLUX])
def shrunk(request, tmp_path_factory) -> Path:
    denoiser = dense_tiny(request.param)
    place = tmp_path_factory.mktemp("manifest") / "small"
    return described(denoiser, what_goes(denoiser), place)


def test_a_folder_holds_what_its_manifest_says(shrunk) -> None:
    assert ditprune.verify(shrunk) == []


def _narrower(folder: Path) -> None:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        name = next(name for name in tensors if name.endswith(("net.2.weight", "proj_out.weight")))
        tensors[name] = tensors[name][:, 1:].clone()

    edit_tensors(folder / f"{STEM}.safetensors", change)


def _other_values(folder: Path) -> None:
    edit_tensors(folder / f"{STEM}.safetensors", lambda t: next(iter(t.values())).add_(1))


def _without_bias(folder: Path) -> None:
    edit_tensors(folder / f"{STEM}.safetensors", lambda t: t.pop(next(n for n in t if "up.b" in n)))


def _form(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    return lambda folder: edit_json(
        folder / "config.json", lambda config: change(config["quantization_config"])
    )


def _claims(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    return lambda folder: edit_json(folder / "ditprune.json", change)


def _one_more_block(form: dict[str, Any]) -> None:
    for stay in form["blocks"].values():
        stay[:] = sorted({*stay, 0, 1})


def _first_group(claims: dict[str, Any]) -> dict[str, Any]:
    return next(g for g in claims["groups"].values() if len(g["kept"]) < g["num_units"])


TAMPERED: dict[str, tuple[Callable[[Path], None], str]] = {
    "a tensor reshaped": (_narrower, "on disk, .* follows from what went"),
    "a tensor changed": (_other_values, "its bytes are not those that were written"),
    "a tensor gone": (_without_bias, "up.bias: missing from the weights"),
    "one more block": (_form(_one_more_block), r"config.json: blocks of .* are \[0, 1"),
    "a number changed": (
        _form(lambda form: next(iter(form["numbers"].values())).update(inner_dim=8)),
        "config.json: numbers of .*'inner_dim': 8",
    ),
    "no form": (
        lambda folder: edit_json(folder / "config.json", lambda c: c.pop("quantization_config")),
        "config.json: is not that of a folder of layout free",
    ),
    "another form": (_form(lambda form: form.update(format=7)), "format 7"),
    "a unit more": (
        _claims(lambda c: _first_group(c).update(kept=[0, *range(_first_group(c)["num_units"])])),
        "units that are not ascending",
    ),
    "other units": (
        _claims(lambda c: _first_group(c)["kept"].append(_first_group(c)["num_units"] - 1)),
        "follows from what went",
    ),
    "a rank": (
        _claims(lambda c: next(iter(c["ranks"].values())).update(rank=3)), "follows from what went",
    ),
    "a total": (
        _claims(lambda c: c["totals"]["after"].update(num_bytes=1)), "num_bytes after is 1",
    ),
    "more MACs": (
        _claims(lambda c: c["totals"]["after"].update(num_macs=901)), "901 after and 900",
    ),
    "no groups": (_claims(lambda c: c.pop("groups")), "ditprune.json: cannot be read"),
}  # fmt: skip


@pytest.mark.parametrize("case", TAMPERED)
def test_what_was_tampered_with_is_told(shrunk, case, tmp_path) -> None:
    folder = Path(shutil.copytree(shrunk, tmp_path / "copy"))
    change, words = TAMPERED[case]
    change(folder)
    told = ditprune.verify(folder)
    assert any(re.search(words, line) for line in told), told


def test_one_that_is_shrunk_again_holds_what_its_manifest_says(tmp_path) -> None:
    denoiser = dense_tiny(DIT)
    described(denoiser, what_goes(denoiser), tmp_path / "first")
    groups, whole = find_groups(denoiser, ["transformer_blocks.0", "transformer_blocks.1"])
    kept = {name: range(1) for name in groups if name.startswith("transformer_blocks.1.")}
    assert {groups[name].kind for name in kept} == {"heads", "neurons"}
    lists = {"transformer_blocks": [1]}
    ranks = {"transformer_blocks.1.norm1.linear": Lowered(2)}
    again = Went(Cut(groups, kept), {}, whole, lists, ranks)
    folder = described(denoiser, again, tmp_path / "again")
    assert ditprune.verify(folder) == []
    assert shrunk_form(denoiser).blocks == {"transformer_blocks": (2,)}
    assert shrunk_form(denoiser).ranks == {"transformer_blocks.0.norm1.linear": 2}


def test_a_config_says_which_blocks_stay_and_a_form_the_rest(tmp_path) -> None:
    denoiser = dense_tiny(DIT)
    groups, whole = find_groups(denoiser, [f"transformer_blocks.{i}" for i in range(3)])
    kept = {name: range(1) for name in groups if name.startswith("transformer_blocks.2.")}
    ranks = {"transformer_blocks.2.norm1.linear": Lowered(2)}
    went = Went(Cut(groups, kept), {}, whole, {"transformer_blocks": [0, 2]}, ranks, True)
    folder = described(denoiser, went, tmp_path / "in the config")
    config = json.loads((folder / "config.json").read_text())
    assert config["num_layers"] == 2
    assert config["quantization_config"]["blocks"] == {}
    assert config["quantization_config"]["ranks"] == {"transformer_blocks.1.norm1.linear": 2}
    assert ditprune.verify(folder) == []
    edit_json(folder / "ditprune.json", lambda claims: claims.update(blocks_in_config=False))
    assert any("blocks of transformer_blocks" in line for line in ditprune.verify(folder))


def test_an_ordinary_folder_with_fewer_blocks_holds_what_its_manifest_says(tmp_path) -> None:
    denoiser = dense_tiny(DIT)
    groups, whole = find_groups(denoiser, [block.path for block in find_blocks(denoiser)])
    went = Went(Cut(groups, {}), {}, whole, {"transformer_blocks": [0, 2]})
    folder = described(denoiser, went, tmp_path / "stock", layout="stock")
    assert "quantization_config" not in (folder / "config.json").read_text()
    assert ditprune.verify(folder) == []
    edit_json(folder / "config.json", lambda config: config.update(attention_head_dim=8))
    assert any("config.json makes" in line for line in ditprune.verify(folder))


def test_the_folder_is_ours_and_its_shards_are_listed(shrunk) -> None:
    assert {path.as_posix() for path in listed_files(shrunk)} >= {
        "config.json", "ditprune.json", f"{STEM}.safetensors",
    }  # fmt: skip
    check_replaceable(shrunk)
