"""Weights in several shards whose index, or whose shards, lie."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from hostile_ground import Ground, add, hostile
from hostile_weights import BROKEN, DEEP, NAME, link
from safetensors.torch import load_file, save_file

from folders import STEM, edit_json, edit_tensors


def shards(ground: Ground) -> list[Path]:
    """Cut the weights into three shards with an index."""
    tensors = load_file(ground.weights)
    names = sorted(tensors)
    parts = [names[i::3] for i in range(3)]
    files = [ground.denoiser / f"{STEM}-{i + 1:05d}-of-00003.safetensors" for i in range(3)]
    for file, part in zip(files, parts, strict=True):
        save_file({name: tensors[name] for name in part}, file, metadata={"format": "pt"})
    weight_map = {name: file.name for file, part in zip(files, parts, strict=True) for name in part}
    ground.index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}), "utf-8")
    ground.weights.unlink()
    return files


def with_map(change: Callable[[dict[str, Any]], Any]) -> Callable[[Ground], None]:
    def spoil(ground: Ground) -> None:
        shards(ground)
        edit_json(ground.index, lambda index: change(index["weight_map"]))

    return spoil


def with_index(text: str) -> Callable[[Ground], None]:
    return lambda ground: (shards(ground), ground.index.write_text(text, "utf-8"))


for name, given in {
    "above": "../x.safetensors", "at the root": "/etc/hostname", "below": "sub/x.safetensors",
    "of no name": "", "the folder": ".", "a number": 7, "nothing": None, "a list": ["a"],
}.items():  # fmt: skip
    add(f"index: a shard {name}", "inspect", "expected a plain file name",
        with_map(lambda where, given=given: where.update({NAME: given})))  # fmt: skip
for name, given in {
    "that is not there": "x.safetensors",
    "with a line break in its name": "x\nerror: all is well",
    "with escape codes in its name": "\x1b[2J\x1b]0;title\x07x",
    "with half a character in its name": "x\ud800",
    "with NUL in its name": "x\x00.safetensors",
    "with a name that is too long": "x" * 5000,
}.items():
    add(f"index: a shard {name}", "inspect",
        "is missing|expected a plain file name|File name too long|half of a character",
        with_map(lambda where, given=given: where.update({NAME: given})))  # fmt: skip
for name, text, word in (
    ("no JSON", "{", "cannot be read as JSON"),
    ("a list", "[]", "expected a JSON object"),
    ("nested deep", '{"weight_map":' * DEEP, "cannot be read as JSON"),
    ("no map", "{}", "no 'weight_map'"),
    ("an empty map", '{"weight_map": {}}', "no 'weight_map'"),
    ("a map that is a list", '{"weight_map": ["a"]}', "no 'weight_map'"),
    ("a number that is too long", '{"weight_map": ' + "9" * 5000 + "}", "cannot be read as JSON"),
    ("a map given twice", '{"weight_map": {"a": "x"}, "weight_map": {}}', "no 'weight_map'"),
):
    add(f"index: {name}", "inspect", word, with_index(text))
for name, change, word in (
    ("a tensor that is nowhere", lambda m: m.update(ghost=min(m.values())), "'ghost' is not in"),
    ("a tensor in another shard", lambda m: m.update({NAME: other_than(m)}), "is in .*, not in"),
    ("a tensor that is not listed", lambda m: m.pop(NAME), "is not listed"),
):
    add(f"index: {name}", "inspect", word, with_map(change))


def other_than(weight_map: dict[str, str]) -> str:
    return min(set(weight_map.values()) - {weight_map[NAME]})


@hostile("inspect", "is not in|is missing")
def index_of_a_million_tensors_that_are_nowhere(ground: Ground) -> None:
    first = shards(ground)[0].name
    names = ",".join(f'"{number}":"{first}"' for number in range(1_000_000))
    ground.index.write_text(f'{{"weight_map":{{{names}}}}}', "utf-8")


@hostile("inspect", "is missing")
def index_of_many_shards_that_are_nowhere(ground: Ground) -> None:
    shards(ground)
    weight_map = {f"{number}": f"{number}.safetensors" for number in range(100_000)}
    ground.index.write_text(json.dumps({"weight_map": weight_map}), "utf-8")


@hostile("inspect", "is not in .*, not in|is in .*, not in")
def index_that_lists_a_tensor_twice(ground: Ground) -> None:
    shards(ground)
    text = ground.index.read_text("utf-8")
    weight_map = json.loads(text)["weight_map"]
    more = f', "{NAME}": "{other_than(weight_map)}"}}}}'
    ground.index.write_text(text.removesuffix("}}") + more, "utf-8")


@hostile("inspect", "is missing")
def shard_missing(ground: Ground) -> None:
    shards(ground)[1].unlink()


@hostile("inspect", BROKEN)
def shard_cut(ground: Ground) -> None:
    file = shards(ground)[1]
    file.write_bytes(file.read_bytes()[:-3])


@hostile("inspect prune", "outside the model")
def shard_that_links_out_of_the_model(ground: Ground) -> None:
    link(shards(ground)[1], ground.outside / "shard.safetensors")


@hostile("inspect", "is also in .*expected each tensor once")
def shard_listed_under_two_names(ground: Ground) -> None:
    file = shards(ground)[0]
    shutil.copy(file, ground.denoiser / "again.safetensors")
    edit_json(ground.index, lambda index: index["weight_map"].update(ghost="again.safetensors"))


@hostile("inspect", "is also in .*expected each tensor once")
def tensor_in_two_shards(ground: Ground) -> None:
    one, two, _ = shards(ground)
    name, tensor = next(iter(load_file(one).items()))
    edit_tensors(two, lambda tensors: tensors.update({name: tensor}))


@hostile("inspect", "is not listed|is also in")
def tensor_hidden_in_a_shard(ground: Ground) -> None:
    edit_tensors(shards(ground)[2], lambda tensors: tensors.update(hidden=torch.zeros(1)))
