"""Weight files that lie: headers, index files, links, dtypes, shapes, values, pickles."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from hostile_ground import Ground, add, hostile
from safetensors.torch import load_file, save_file
from torch import Tensor

from folders import STEM, edit_header, edit_json, edit_tensors

NAME = "transformer_blocks.1.ff.net.2.weight"
OTHER = "transformer_blocks.1.ff.net.2.bias"
BROKEN = "not a complete safetensors file"
DEEP = 100_000


def with_bytes(change: Callable[[bytes], bytes]) -> Callable[[Ground], None]:
    return lambda ground: ground.weights.write_bytes(change(ground.weights.read_bytes())) and None


def with_header(change: Callable[[dict[str, Any]], Any]) -> Callable[[Ground], None]:
    return lambda ground: edit_header(ground.weights, change)


def with_tensors(change: Callable[[dict[str, Tensor]], Any]) -> Callable[[Ground], None]:
    return lambda ground: edit_tensors(ground.weights, change)


def length(number: int) -> Callable[[bytes], bytes]:
    return lambda raw: number.to_bytes(8, "little") + raw[8:]


def header(text: bytes) -> Callable[[bytes], bytes]:
    return lambda raw: len(text).to_bytes(8, "little") + text


def record(**changes: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda header: header[NAME].update(changes)


def shifted(begin: int, end: int) -> Callable[[dict[str, Any]], Any]:
    def change(header: dict[str, Any]) -> None:
        first, last = header[NAME]["data_offsets"]
        header[NAME]["data_offsets"] = [first + begin, last + end]

    return change


READERS = "inspect prune calibrate evaluate"
for name, change in {
    "an empty file": lambda raw: b"",
    "cut in its length": lambda raw: raw[:4],
    "cut in its header": lambda raw: raw[:100],
    "cut in its data": lambda raw: raw[:-1],
    "zeros": lambda raw: bytes(99),
    "a zip archive": lambda raw: b"PK\x03\x04" * 99,
}.items():
    add(f"weights: {name}", READERS, BROKEN, with_bytes(change))
for name, change in {
    "bytes behind the data": lambda raw: raw + b"more",
    "a header of no length": length(0),
    "a header of 2^63 bytes": length(1 << 63),
    "a header of 2^64 - 1 bytes": length((1 << 64) - 1),
    "a header longer than the file": length(99_000_000),
    "a header that is not UTF-8": header(b'{"\xff\xfe": 1}'),
    "a header cut short": header(b'{"a":'),
    "a header that is a list": header(b"[]"),
    "a header nested deep": header(b'{"a":' * DEEP + b"}" * DEEP),
    "a header of nothing but metadata": header(b'{"__metadata__": {"a": 1}}'),
    "a name twice with two places": lambda raw: twice(raw),
}.items():
    add(f"weights: {name}", "inspect", BROKEN, with_bytes(change))
for name, change in {
    "tensors that overlap": shifted(-8, -8),
    "a negative place": lambda header: header[NAME].update(data_offsets=[-8, 16]),
    "an end before its begin": lambda header: header[NAME]["data_offsets"].reverse(),
    "a place behind the end": shifted(10**12, 10**12),
    "a gap between tensors": shifted(4, 0),
    "a shape that contradicts its size": record(shape=[32, 127]),
    "a shape that overflows": record(shape=[1 << 62, 8]),
    "a negative shape": record(shape=[-32, -128]),
    "a shape of text": record(shape="32x128"),
    "a dtype that is none": record(dtype="F7"),
    "a dtype that contradicts its size": record(dtype="BF16"),
    "a record without a place": lambda header: header[NAME].pop("data_offsets"),
    "a record that is a number": lambda header: header.update({NAME: 3}),
}.items():
    add(f"weights: {name}", "inspect", BROKEN, with_header(change))


def twice(raw: bytes) -> bytes:
    """The first record of the header once more, at the end and somewhere else."""
    size = int.from_bytes(raw[:8], "little")
    text = raw[8 : 8 + size].rstrip()
    other = json.dumps({"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}).encode()
    text = text[:-1] + b', "' + NAME.encode() + b'": ' + other + b"}"
    return len(text).to_bytes(8, "little") + text + raw[8 + size :]


def spoil_value(value: float) -> Callable[[dict[str, Tensor]], Any]:
    return lambda tensors: tensors[NAME].view(-1)[1200].fill_(value)


WHERE = NAME.removesuffix(".weight").replace(".", r"\.")
for name, value in {"NaN": float("nan"), "Inf": float("inf"), "-Inf": -float("inf")}.items():
    add(f"weights: {name}", "prune", f"{WHERE}: its weight holds NaN or Inf",
        with_tensors(spoil_value(value)))  # fmt: skip
    add(f"weights: {name} for magnitude", "prune", "made from other weights|holds NaN or Inf",
        with_tensors(lambda t, value=value: t[NAME].view(-1)[0].fill_(value)))  # fmt: skip
for name, change, word in (
    ("no target", lambda t: t.pop(NAME), "is in config.json's model and not in the weights"),
    ("a target turned", lambda t: t.update({NAME: t[NAME].T.contiguous()}), "has shape"),
    ("a target of no size", lambda t: t.update({NAME: torch.zeros(0, 128)}), r"has shape \[0, 128"),
    ("a target of rank 0", lambda t: t.update({NAME: torch.tensor(1.0)}), r"has shape \[\]"),
    ("a target of int8", lambda t: t.update({NAME: t[NAME].char()}), "is stored as I8"),
    ("a target of float8", lambda t: t.update({NAME: t[NAME].to(torch.float8_e4m3fn)}), "F8_E4M3"),
    ("a target of bool", lambda t: t.update({NAME: t[NAME].bool()}), "is stored as BOOL"),
    ("no tensors", lambda t: t.clear(), "not in the weights"),
):
    add(f"weights: {name}", "inspect prune", word, with_tensors(change))
for name, change in {
    "another tensor turned": lambda t: t.update({OTHER: torch.zeros(7)}),
    "another tensor missing": lambda t: t.pop(OTHER),
}.items():
    add(f"weights: {name}", "calibrate", "diffusers cannot load it", with_tensors(change))


@hostile("inspect prune", "has shape")
def weights_of_a_smaller_model(ground: Ground) -> None:
    edit_json(ground.config, lambda config: config.update(attention_head_dim=32))


@hostile("prune", "make room or choose another disk|not a complete safetensors file")
def weights_of_a_terabyte_that_is_not_there(ground: Ground) -> None:
    raw = ground.weights.read_bytes()
    size = int.from_bytes(raw[:8], "little")
    end = len(raw) - 8 - size
    ghost = {"dtype": "F32", "shape": [1 << 38], "data_offsets": [end, end + (1 << 40)]}
    edit_header(ground.weights, lambda header: header.update(ghost=ghost))
    os.truncate(ground.weights, ground.weights.stat().st_size + (1 << 40))


@hostile("inspect", BROKEN)
def weights_with_a_header_of_gigabytes(ground: Ground) -> None:
    with ground.weights.open("r+b") as stream:
        stream.write((1 << 32).to_bytes(8, "little"))
        stream.truncate(1 << 33)


@hostile(READERS, "weights only as pickle")
def weights_as_a_pickle(ground: Ground) -> None:
    ground.weights.unlink()
    ground.pickle(ground.weights.with_suffix(".bin"))


@hostile("inspect calibrate", BROKEN)
def weights_that_are_a_pickle_by_another_name(ground: Ground) -> None:
    ground.pickle(ground.weights)


@hostile("calibrate", "diffusers cannot load it")
def weights_of_the_decoder_as_a_pickle(ground: Ground) -> None:
    file = ground.model / "vae" / f"{STEM}.safetensors"
    file.unlink()
    ground.pickle(file.with_suffix(".bin"))


@hostile("calibrate", "diffusers cannot load it")
def weights_of_the_decoder_cut(ground: Ground) -> None:
    file = ground.model / "vae" / f"{STEM}.safetensors"
    file.write_bytes(file.read_bytes()[:5000])


@hostile("inspect", "no diffusion_pytorch_model.safetensors")
def weights_missing(ground: Ground) -> None:
    ground.weights.unlink()


@hostile("inspect", "several variants")
def weights_in_two_variants(ground: Ground) -> None:
    for variant in ("a", "b"):
        shutil.copy(ground.weights, ground.denoiser / f"{STEM}.{variant}.safetensors")
    ground.weights.unlink()


@hostile(READERS, "outside the model")
def weights_that_link_out_of_the_model(ground: Ground) -> None:
    link(ground.weights, ground.outside / "weights.safetensors")


@hostile("inspect", "no diffusion_pytorch_model.safetensors|is missing")
def weights_that_link_to_themselves(ground: Ground) -> None:
    ground.weights.unlink()
    ground.weights.symlink_to(ground.weights.name)


@hostile("inspect", "is missing")
def weights_that_are_a_folder(ground: Ground) -> None:
    ground.weights.unlink()
    ground.weights.mkdir()


@hostile("inspect", "is missing")
def weights_that_are_a_pipe(ground: Ground) -> None:
    ground.weights.unlink()
    os.mkfifo(ground.weights)


def link(file: Path, target: Path) -> None:
    """Move a file and leave a link in its place."""
    shutil.move(file, target)
    file.symlink_to(target)


# --- several shards and their index ---


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
    return lambda ground: (shards(ground), ground.index.write_text(text, "utf-8")) and None


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
    add(f"index: a shard {name}", "inspect", "is missing|expected a plain file name|File name too long",
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
    weight_map = {f"ghost.{number}": first for number in range(1_000_000)}
    ground.index.write_text(json.dumps({"weight_map": weight_map}), "utf-8")


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
