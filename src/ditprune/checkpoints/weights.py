"""Reads a denoiser's safetensors shards tensor by tensor; the model is never instantiated."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ditprune.checkpoints.locate import check_inside
from ditprune.errors import ModelError
from ditprune.writing.json_file import parse_json, read_json
from ditprune.writing.model_files import PICKLES
from ditprune.writing.tensors_file import Stored, header

_STEM = "diffusion_pytorch_model"
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}


@dataclass(frozen=True)
class Entry:
    """One tensor in a shard: `offset` and `size_bytes` are in the file."""

    name: str
    file: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int
    size_bytes: int


class Weights:
    """The tensors of one denoiser on disk, in the order in which its shards hold them.

    Opening reads and checks the headers only. Raises ModelError for anything that is not a
    complete, consistent set of safetensors files inside the folder.
    """

    def __init__(self, folder: Path) -> None:
        self.index, self.shards = _find_shards(folder)
        self.entries: dict[str, Entry] = {}
        for shard in self.shards:
            for entry in read_header(shard):
                if entry.name in self.entries:
                    raise ModelError(
                        f"{shard}: tensor '{entry.name}' is also in "
                        f"{self.entries[entry.name].file.name}; expected each tensor once"
                    )
                self.entries[entry.name] = entry
        if self.index is not None:
            _check_index(self.index, self.entries)

    @property
    def size_bytes(self) -> int:
        return sum(shard.stat().st_size for shard in self.shards)

    @property
    def stored_bytes(self) -> int:
        """What the shards take on disk; `size_bytes`, but for packed ones."""
        return self.size_bytes

    @property
    def num_parameters(self) -> int:
        return sum(math.prod(entry.shape) for entry in self.entries.values())

    def in_shard(self, shard: Path) -> list[Entry]:
        """The entries of one shard by offset."""
        return sorted((e for e in self.entries.values() if e.file == shard), key=lambda e: e.offset)

    def in_order(self) -> Iterator[Entry]:
        """Every entry, shard by shard, by offset."""
        for shard in self.shards:
            yield from self.in_shard(shard)

    def header(self, shard: Path) -> bytes:
        """The first bytes of a shard, up to its tensors: a length and JSON."""
        with shard.open("rb") as stream:
            size = stream.read(8)
            return size + stream.read(int.from_bytes(size, "little"))

    def header_hashes(self) -> dict[str, str]:
        """The sha256 of each shard's header: names, dtypes, shapes and places of its tensors."""
        return {shard.name: sha256(self.header(shard)) for shard in self.shards}

    def raw(self, entry: Entry) -> memoryview:
        """The bytes of one tensor. Raises ModelError."""
        return read_range(entry.file, entry.offset, entry.size_bytes)

    def read(self, name: str) -> Tensor:
        """One tensor in its stored dtype."""
        entry = self.entries[name]
        return as_tensor(self.raw(entry), entry)

    def read_slice(self, name: str, start: int, count: int) -> Tensor:
        """`count` elements from flat position `start` of one tensor, [count]."""
        entry = self.entries[name]
        item = entry.size_bytes // max(1, math.prod(entry.shape))
        raw = read_range(entry.file, entry.offset + start * item, count * item)
        return as_tensor(raw, replace(entry, shape=(count,)))


def sha256(raw: bytes | bytearray | memoryview) -> str:
    """The hash of some bytes, in hex."""
    return hashlib.sha256(raw).hexdigest()


def as_tensor(raw: memoryview, entry: Entry) -> Tensor:
    """The tensor over these bytes, without a copy. Raises ModelError as `dtype_of` does."""
    if not raw:  # which frombuffer refuses
        return torch.empty(entry.shape, dtype=dtype_of(entry))
    return torch.frombuffer(raw, dtype=dtype_of(entry)).reshape(entry.shape)


def dtype_of(entry: Entry) -> torch.dtype:
    """The torch dtype of an entry. Raises ModelError for one that is not pruned."""
    if entry.dtype not in DTYPES:
        raise ModelError(
            f"{entry.file.name}: {entry.name} is stored as {entry.dtype}, expected one of "
            f"{', '.join(DTYPES)}; convert the checkpoint first"
        )
    return DTYPES[entry.dtype]


def read_range(
    file: Path, offset: int, size_bytes: int, room: memoryview | None = None
) -> memoryview:
    """`size_bytes` bytes of a file, read into `room` if that is given.

    Raises ModelError where the file ends before.
    """
    if room is None:
        room = np.empty(size_bytes, np.uint8).data  # numpy asks the system for huge pages
    raw = room
    try:
        with file.open("rb", buffering=0) as stream:
            stream.seek(offset)
            done = 0
            while done < size_bytes:
                count = stream.readinto(raw[done:])
                if not count:
                    missing = size_bytes - done
                    raise ModelError(f"{file}: ends {missing} bytes early; fetch it again")
                done += count
    except OSError as error:
        raise ModelError(f"{file}: cannot be read ({error.strerror}); fetch it again") from None
    return raw


def read_header(file: Path) -> Iterator[Entry]:
    """The entries of a safetensors file, after the library has checked its header."""
    try:
        with safe_open(file, framework="pt"):
            pass
        with file.open("rb") as stream:
            header_size = int.from_bytes(stream.read(8), "little")
            header = parse_json(stream.read(header_size))
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:  # the last from mmap
        raise ModelError(
            f"{file}: not a complete safetensors file ({error}); fetch it again"
        ) from None
    yield from entries_of(header, header_size, file)


def entries_of(header: Mapping[str, Any], header_size: int, file: Path) -> Iterator[Entry]:
    """What the header of a safetensors file lists; its JSON takes `header_size` bytes."""
    for name, record in header.items():
        if name != "__metadata__":
            begin, end = record["data_offsets"]
            shape = tuple(record["shape"])
            yield Entry(name, file, record["dtype"], shape, 8 + header_size + begin, end - begin)


def _find_shards(folder: Path) -> tuple[Path | None, list[Path]]:
    """The index file, if there is one, and the shards in the order of the index."""
    indices = _with_variant(folder, ".safetensors.index.json", ".safetensors.index.*.json")
    if indices:
        weight_map = read_json(indices).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise ModelError(f"{indices}: no 'weight_map'; expected tensor names with their shards")
        shards: dict[str, Path] = {}
        for name in weight_map.values():
            if not isinstance(name, str) or name not in shards:
                shards[str(name)] = _inside(folder, indices, name)
        return indices, list(shards.values())
    single = _with_variant(folder, ".safetensors", ".*.safetensors")
    if single:
        return None, [_inside(folder, single, single.name)]
    pickles = sorted(p.name for p in folder.iterdir() if p.suffix in PICKLES)
    if pickles:
        raise ModelError(
            f"{folder}: weights only as pickle ({pickles[0]}), which can run code and is never "
            "loaded; save the model with safe_serialization=True"
        )
    raise ModelError(
        f"{folder}: no {_STEM}.safetensors (or its index); expected safetensors weights (pickled "
        "ones are never loaded: save the model with safe_serialization=True)"
    )


def _with_variant(folder: Path, plain: str, variant: str) -> Path | None:
    """The plain file, else the only one with a variant such as fp16 in its name."""
    if (folder / f"{_STEM}{plain}").exists():
        return folder / f"{_STEM}{plain}"
    others = sorted(p for p in folder.glob(f"{_STEM}{variant}") if "-of-" not in p.name)
    if len(others) > 1:
        names = ", ".join(p.name for p in others)
        raise ModelError(f"{folder}: several variants ({names}) and no plain one; keep one")
    return others[0] if others else None


def _inside(folder: Path, source: Path, name: object) -> Path:
    """The shard `name` of `folder`; refused where it would lead out of the model."""
    if not isinstance(name, str) or name in ("", ".", "..") or Path(name).name != name:
        raise ModelError(f"{source}: names the shard {name!r}; expected a plain file name")
    file = folder / name
    if not file.is_file():
        raise ModelError(f"{source}: shard {name} is missing; fetch the model again")
    check_inside(file, folder)
    return file


def _check_index(index: Path, entries: dict[str, Entry]) -> None:
    weight_map = read_json(index)["weight_map"]
    for name, shard in weight_map.items():
        if name not in entries:
            raise ModelError(f"{index}: tensor '{name}' is not in {shard}; fetch the model again")
        if entries[name].file.name != shard:
            raise ModelError(
                f"{index}: tensor '{name}' is in {entries[name].file.name}, not in {shard}; "
                "fetch the model again"
            )
    for name, entry in entries.items():
        if name not in weight_map:
            raise ModelError(f"{index}: tensor '{name}' of {entry.file.name} is not listed in it")


@dataclass(frozen=True)
class Layout:
    """The first bytes of each shard by its name, and the place of every tensor."""

    headers: Mapping[str, bytes]
    entries: Mapping[str, Entry]

    @property
    def size_bytes(self) -> int:
        return sum(map(self.size_bytes_of, self.headers))

    def size_bytes_of(self, shard: str) -> int:
        """What a shard takes."""
        tensors = sum(e.size_bytes for e in self.entries.values() if e.file.name == shard)
        return len(self.headers[shard]) + tensors

    def in_order(self) -> Iterator[Entry]:
        """Every entry, shard by shard, by offset."""
        order = {shard: number for number, shard in enumerate(self.headers)}
        yield from sorted(self.entries.values(), key=lambda e: (order[e.file.name], e.offset))


def layout_of(weights: Weights) -> Layout:
    """The layout that a folder has."""
    headers = {shard.name: weights.header(shard) for shard in weights.shards}
    return Layout(headers, weights.entries)


def laid_out(
    weights: Weights, in_shard: Callable[[Path], Sequence[Entry]], note: str | None = None
) -> Layout:
    """A layout with the shards of a folder, and other tensors in them.

    Args:
        in_shard: the tensors of a shard, in their order; their offsets do not count.
        note: goes into the metadata of every header, as `ditprune`.
    """
    headers: dict[str, bytes] = {}
    entries: dict[str, Entry] = {}
    for shard in weights.shards:
        metadata = parse_json(weights.header(shard)[8:]).get("__metadata__") or {}
        tensors = in_shard(shard)
        stored = (Stored(e.name, e.dtype, e.shape, e.size_bytes) for e in tensors)
        headers[shard.name] = header(
            metadata if note is None else {**metadata, "ditprune": note}, stored
        )
        offset = len(headers[shard.name])
        for entry in tensors:
            entries[entry.name] = replace(entry, offset=offset)
            offset += entry.size_bytes
    return Layout(headers, entries)
