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
from torch import Tensor

from folders import STEM, edit_header, edit_json, edit_tensors

NAME = "transformer_blocks.1.ff.net.2.weight"
OTHER = "transformer_blocks.1.ff.net.2.bias"
BROKEN = "not a complete safetensors file"
DEEP = 100_000


def with_bytes(change: Callable[[bytes], bytes]) -> Callable[[Ground], None]:
    return lambda ground: ground.weights.write_bytes(change(ground.weights.read_bytes()))


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
        with_tensors(spoil_value(value)), is_midway=True)  # fmt: skip
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
