"""Verification: silent on what prune wrote, one telling line for every planted lie."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ditprune.checkpoints.locate import locate
from ditprune.errors import ModelError
from ditprune.method.words import build
from ditprune.pruning.loop import prune_checkpoint
from ditprune.pruning.verify import false_claims
from folders import STEM, edit_header, edit_json, edit_tensors, save_pipeline, shards_of

NAME = "transformer_blocks.1.attn1.to_q"
MODULATION = "transformer_blocks.1.norm1.linear"
BIAS = "transformer_blocks.1.attn1.to_q.bias"


@pytest.fixture(scope="module")
def make(tiny_dit, tiny_stats, tmp_path_factory) -> Callable[..., Path]:
    """Prunes the tiny pipeline, once for each set of words."""
    made: dict[str, Path] = {}

    def prune(max_shard_size: str = "10GB", **words: Any) -> Path:
        key = json.dumps([max_shard_size, words])
        if key not in made:
            place = tmp_path_factory.mktemp("verify")
            folder = save_pipeline(tiny_dit(), place / "model", max_shard_size=max_shard_size)
            prune_checkpoint(
                locate(str(folder)), place / "out", {"any": tiny_stats}, build(**words)
            )
            made[key] = place / "out"
        return made[key]

    return prune


@pytest.fixture
def own(make, tmp_path) -> Callable[..., Path]:
    """A copy of a pruned folder's denoiser, to spoil."""
    return lambda **words: Path(shutil.copytree(make(**words) / "transformer", tmp_path / "out"))


def claims_of(folder: Path) -> list[str]:
    lines = list(false_claims(locate(str(folder))))
    assert all("\n" not in line for line in lines)
    return lines


def weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    edit_tensors(folder / f"{STEM}.safetensors", change)


def record(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    edit_json(folder / "ditprune.json", change)


def caught(folder: Path, match: str) -> list[str]:
    lines = claims_of(folder)
    assert any(re.search(match, line) for line in lines), lines
    return lines


@pytest.mark.parametrize(
    "words",
    [
        {},
        {"pattern": "2:4"},
        {"pattern": "4:8", "saliency": "magnitude"},
        {"granularity": "layer"},
        {"granularity": "channel", "sparsity": 0.3},
        {"sparsity": 0},
        {"include": "*.attn1.*"},
        {"max_shard_size": "60KB"},
        {"cag_threshold": 0.3},
    ],
    ids=str,
)
def test_what_prune_wrote_holds(words, make) -> None:
    out = make(**words)
    assert claims_of(out) == []
    assert claims_of(out / "transformer") == []


def kept(tensor: torch.Tensor) -> torch.Tensor:
    """Flat places of the weights that stayed."""
    return tensor.reshape(-1).nonzero()[:, 0]


@pytest.mark.parametrize("name", [f"{NAME}.weight", BIAS, "pos_embed.proj.weight"])
@pytest.mark.parametrize("bit", [0, 7, 31])
def test_one_flipped_bit(name, bit, own) -> None:
    def flip(tensors) -> None:
        flat = tensors[name].reshape(-1).view(torch.int32)
        place = kept(tensors[name])[3]
        flat[place] = flat[place] ^ (1 << bit if bit < 31 else -(1 << 31))

    folder = own()
    weights(folder, flip)
    is_target = name == f"{NAME}.weight"
    lines = caught(folder, "its bytes are not those" if is_target else "differs from the dense")
    assert len(lines) == 1
    assert lines[0].startswith(NAME if is_target else name)


def test_the_sign_of_a_removed_weight(own) -> None:
    def negate(tensors) -> None:
        flat = tensors[f"{NAME}.weight"].view(-1)
        flat[(flat == 0).nonzero()[0]] = -0.0

    folder = own()
    weights(folder, negate)
    assert claims_of(folder) == [f"{NAME}: its bytes are not those that were written"]


@pytest.mark.parametrize("words", [{}, {"pattern": "2:4"}, {"granularity": "channel"}], ids=str)
def test_one_zero_too_few(words, own) -> None:
    def fill(tensors) -> None:
        flat = tensors[f"{NAME}.weight"].view(-1)
        flat[(flat == 0).nonzero()[0]] = 0.25

    folder = own(**words)
    weights(folder, fill)
    caught(folder, f"^{NAME}: 511 zeros on disk, 512 claimed")
    caught(folder, f"^{NAME}: 1 of [0-9]+ groups .* fewer than [0-9]+ zeros")


def test_one_zero_too_many(own) -> None:
    folder = own()
    weights(folder, lambda t: t[f"{NAME}.weight"].view(-1)[kept(t[f"{NAME}.weight"])[0]].zero_())
    caught(folder, f"^{NAME}: 513 zeros on disk, 512 claimed")


@pytest.mark.parametrize(
    ("words", "width", "group"), [({"granularity": "channel"}, 32, 1), ({"pattern": "2:4"}, 4, 1)]
)
def test_a_zero_moved_to_another_group(words, width, group, own) -> None:
    """The counts of the layer still hold: only the groups tell."""

    def move(tensors) -> None:
        groups = tensors[f"{NAME}.weight"].view(-1, width)
        here, there = groups[group], groups[group + 1]
        there[there.nonzero()[0]] = 0.0
        here[(here == 0).nonzero()[0]] = 0.25

    folder = own(**words)
    weights(folder, move)
    lines = caught(folder, f"^{NAME}: 1 of [0-9]+ groups .* first group {group}$")
    assert not any("claimed" in line for line in lines)


def test_missing_extra_and_renamed_tensors(own) -> None:
    folder = own()
    weights(folder, lambda tensors: tensors.pop(BIAS))
    caught(folder, rf"^{BIAS}: missing from the weights")
    weights(folder, lambda tensors: tensors.update({"ghost.bias": torch.zeros(3)}))
    caught(folder, r"^ghost\.bias: is in the weights and not in ditprune\.json")
    weights(folder, lambda tensors: tensors.pop(f"{NAME}.weight"))
    caught(folder, rf"^{NAME}\.weight: missing from the weights")


def test_another_shape_or_dtype_of_a_target(own) -> None:
    folder = own()
    name = f"{NAME}.weight"
    weights(folder, lambda tensors: tensors.update({name: tensors[name].reshape(16, 64)}))
    caught(folder, rf"^{NAME}: shape \[16, 64\] on disk, \[32, 32\] claimed")


def change_header(folder: Path, name: str, **values: Any) -> None:
    edit_header(folder / f"{STEM}.safetensors", lambda header: header[name].update(values))


@pytest.mark.parametrize("name", [f"{NAME}.weight", BIAS])
def test_the_same_bytes_read_as_another_dtype(name, own) -> None:
    """The header is part of what must be the dense model's: F32 read as I32 is another tensor."""
    folder = own()
    change_header(folder, name, dtype="I32")
    caught(folder, "^the headers of the shards")


def test_the_same_bytes_read_in_another_shape(own) -> None:
    folder = own()
    change_header(folder, BIAS, shape=[4, 8])
    caught(folder, "^the headers of the shards")


def test_another_config(own) -> None:
    folder = own()
    edit_json(folder / "config.json", lambda config: config.update(norm_eps=1e-3))
    assert claims_of(folder) == ["config.json: is not the dense model's"]


def test_a_missing_config(make, tmp_path) -> None:
    folder = Path(shutil.copytree(make(), tmp_path / "out"))
    (folder / "transformer" / "config.json").unlink()
    assert claims_of(folder) == ["config.json: missing"]


EDITS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "num_pruned": (lambda c: c["targets"][NAME].update(num_pruned=511), NAME),
    "num_pruned and num_asked": (
        lambda c: c["targets"][NAME].update(num_pruned=500, num_asked=500), NAME,
    ),
    "num_zero": (lambda c: c["targets"][NAME].update(num_zero=513), "512 zeros on disk, 513"),
    "num_groups": (lambda c: c["targets"][NAME].update(num_groups=2), "in 1 groups"),
    "granularity": (lambda c: c["targets"][NAME].update(granularity="channel"), NAME),
    "pattern for granularity": (lambda c: c["targets"][NAME].update(granularity="2:4"), NAME),
    "unknown granularity": (lambda c: c["targets"][NAME].update(granularity="block"), "block"),
    "shape": (lambda c: c["targets"][NAME].update(shape=[64, 16]), "shape"),
    "sha256": (lambda c: c["targets"][NAME].update(sha256="0" * 64), "its bytes"),
    "a record that is none": (lambda c: c["targets"].update({NAME: 3}), "cannot be read"),
    "a record without count": (lambda c: c["targets"][NAME].pop("num_zero"), "cannot be read"),
    "target removed": (lambda c: c["targets"].pop(NAME), "totals|not in ditprune"),
    "target made up": (
        lambda c: c["targets"].update(ghost=c["targets"][NAME]), r"ghost\.weight: missing",
    ),
    "no targets": (lambda c: c.update(targets={}), "."),
    "total sparsity": (lambda c: c["totals"].update(sparsity=0.75), "totals: sparsity is 0.75"),
    "total pruned": (lambda c: c["totals"].update(num_pruned=1), "totals: num_pruned is 1"),
    "total weights": (lambda c: c["totals"].update(num_weights=1), "totals: num_weights"),
    "total targets": (lambda c: c["totals"].update(num_targets=20), "totals: num_targets"),
    "model sparsity": (lambda c: c["totals"].update(model_sparsity=0.5), "totals: model_sparsity"),
    "number of parameters": (
        lambda c: c["totals"].update(
            num_parameters=10 * c["totals"]["num_parameters"],
            model_sparsity=c["totals"]["num_pruned"] / (10 * c["totals"]["num_parameters"]),
        ), "num_parameters",
    ),
    "no parameters": (lambda c: c["totals"].update(num_parameters=0), "."),
    "no totals": (lambda c: c.pop("totals"), "totals"),
    "recipe unknown": (lambda c: c["recipe"].update(saliency="stww"), "did you mean 'stw'"),
    "recipe key": (lambda c: c["recipe"].update(sparsty=1), "unknown key 'sparsty'"),
    "recipe gone": (lambda c: c.pop("recipe"), "recipe"),
    "recipe no object": (lambda c: c.update(recipe=3), "recipe"),
    "recipe sparsity": (lambda c: c["recipe"].update(sparsity=0.75), "asks for"),
    "recipe granularity": (
        lambda c: c["recipe"].update(granularity="layer", cag_threshold=None), MODULATION,
    ),
    "recipe pattern": (
        lambda c: c["recipe"].update(
            pattern="2:4", sparsity=None, granularity=None, cag_threshold=None
        ), "2:4",
    ),
    "untouched hash": (lambda c: c["untouched"].update({BIAS: "0" * 64}), BIAS),
    "untouched removed": (lambda c: c["untouched"].pop(BIAS), f"{BIAS}: is in the weights"),
    "untouched made up": (lambda c: c["untouched"].update(ghost="0"), "ghost: missing"),
    "untouched no object": (lambda c: c.update(untouched=3), "cannot be read"),
    "config hash": (lambda c: c["base"].update(config_sha256="0"), "config.json: is not"),
    "base gone": (lambda c: c.pop("base"), "base"),
    "format": (lambda c: c.update(format=99), "format"),
    "granularity against G_out": (
        lambda c: c["targets"][MODULATION].update(g_out=0.0), MODULATION,
    ),
}  # fmt: skip


@pytest.mark.parametrize("edit", EDITS)
def test_an_edited_manifest(edit, own) -> None:
    change, match = EDITS[edit]
    folder = own()
    record(folder, change)
    caught(folder, match)


@pytest.mark.parametrize("content", ["", "{", "[]", "3", "{}"])
def test_a_manifest_that_is_none(content, own) -> None:
    folder = own()
    (folder / "ditprune.json").write_text(content, encoding="utf-8")
    assert len(caught(folder, r"ditprune\.json: cannot be read")) == 1


def test_another_pattern_than_the_weights_have(own) -> None:
    folder = own(pattern="2:4")
    record(folder, lambda c: c["recipe"].update(pattern="1:4"))
    caught(folder, f"{NAME}: .*granularity 2:4, the recipe says 1:4")

    def relabel(claims) -> None:
        for target in claims["targets"].values():
            num_weights = target["shape"][0] * target["shape"][1]
            target.update(granularity="1:4", num_asked=num_weights * 3 // 4)

    record(folder, relabel)
    caught(folder, f"{NAME}: .* groups .1:4. have fewer than 3 zeros")


@pytest.mark.parametrize("words", [{}, {"pattern": "2:4"}], ids=str)
def test_two_shards_swapped(words, own) -> None:
    folder = own(max_shard_size="60KB", **words)
    first, second = shards_of(folder)[:2]
    first.rename(folder / "x")
    second.rename(first)
    (folder / "x").rename(second)
    caught(folder, "^the weights are not those that were written: .*fetch the model again")


def test_the_weights_of_another_pruning(own, make) -> None:
    folder = own()
    shutil.copy(
        make(granularity="channel") / "transformer" / f"{STEM}.safetensors",
        folder / f"{STEM}.safetensors",
    )
    caught(folder, f"^{NAME}: its bytes are not those that were written")


def test_the_dense_weights(own, make) -> None:
    folder = own()
    dense = make().parent / "model" / "transformer" / f"{STEM}.safetensors"
    shutil.copy(dense, folder / dense.name)
    caught(folder, f"^{NAME}: 0 zeros on disk, 512 claimed")


def test_without_a_manifest_it_is_refused(make) -> None:
    with pytest.raises(ModelError, match=r"no ditprune\.json; expected a folder that"):
        claims_of(make().parent / "model")


def test_truncated_weights_are_refused(own) -> None:
    folder = own()
    file = folder / f"{STEM}.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    caught(folder, "^the weights are not those that were written: .*not a complete safetensors")
