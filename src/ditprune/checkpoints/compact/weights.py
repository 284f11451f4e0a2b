"""A folder with packed weights: what it says of the dense one it came from, and its tensors.

`ditprune-compact.json` keeps the dense config.json and the headers of the dense shards word for
word, and two hashes of every tensor, as it lies there and as it was; `config.json` itself names us
as its quantiser, so that diffusers asks us to unpack.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ditprune.checkpoints import manifest
from ditprune.checkpoints.compact.head import ITEM_BYTES, Head, read_head
from ditprune.checkpoints.compact.packing import unpack
from ditprune.checkpoints.layout import Layout
from ditprune.checkpoints.weights import Entry, Weights, entries_of, sha256
from ditprune.errors import ModelError
from ditprune.writing.json_file import read_json
from ditprune.writing.output import COMPACT_MANIFEST, is_compact

FORMAT = 1
METHOD = "ditprune"
# diffusers prints the method's name where it does not know it, so the name says what to do.
QUANT_METHOD = f"{METHOD}: do `pip install {METHOD}` and `import {METHOD}` before loading"
QUANTIZATION_CONFIG = {"quant_method": QUANT_METHOD, "format": FORMAT}

# What reading a manifest raises when someone has changed its form.
_MALFORMED = (KeyError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError)


class CompactWeights(Weights):
    """The dense tensors of a packed folder, unpacked and checked when they are read.

    Opening reads headers and heads only. Raises ModelError for anything but what `convert` wrote.

    Attributes:
        packed: what lies on disk.
        layout: of the dense shards.
        config: the dense config.json.
        hashes: by tensor, of the packed and of the dense bytes.
    """

    def __init__(self, folder: Path) -> None:
        self._sliced: tuple[str, Tensor] | None = None
        self._checked: set[str] = set()
        self.packed = Weights(folder)
        self.index, self.shards = self.packed.index, self.packed.shards
        file = folder / COMPACT_MANIFEST
        claims = read_json(file)
        try:
            if claims["format"] != FORMAT:
                raise ValueError(f"format {claims['format']}, this version reads {FORMAT}")
            self.config = str(claims["config"]).encode()
            self.hashes = {
                name: (str(one["sha256"]), str(one["dense_sha256"]))
                for name, one in claims["tensors"].items()
            }
            self.layout = _dense_layout(self.packed, claims["headers"])
            if self.hashes.keys() != self.layout.entries.keys():
                raise ValueError("it lists other tensors than the shards hold")
        except _MALFORMED as error:
            raise ModelError(
                f"{file}: cannot be read ({error}); expected what `ditprune convert` wrote"
            ) from None
        self.entries = dict(self.layout.entries)
        self._packed_names = {
            name for name, entry in self.entries.items() if _is_packed(self.packed, entry)
        }

    @property
    def size_bytes(self) -> int:
        return self.layout.size_bytes

    @property
    def stored_bytes(self) -> int:
        return self.packed.size_bytes

    def header(self, shard: Path) -> bytes:
        return self.layout.headers[shard.name]

    def raw(self, entry: Entry) -> memoryview:
        """The dense bytes of one tensor. Raises ModelError where a hash is another.

        Hashes take longer than unpacking, so they are compared when it is read first.
        """
        raw = self.packed.raw(self.packed.entries[entry.name])
        dense = self.dense(entry.name, raw)
        if entry.name not in self._checked:
            self.check(entry.name, sha256(raw), sha256(dense))
            self._checked.add(entry.name)
        return dense

    def read_slice(self, name: str, start: int, count: int) -> Tensor:
        """As of dense weights; the tensor stays for the next slice of it."""
        if self._sliced is None or self._sliced[0] != name:
            self._sliced = name, self.read(name).reshape(-1)
        return self._sliced[1][start : start + count]

    def keeps_config(self, folder: Path) -> bool:
        """Whether config.json is the dense one with our name in it."""
        try:
            return read_json(folder / "config.json") == _named(self.config)
        except (ModelError, *_MALFORMED):
            return False

    def dense(self, name: str, raw: memoryview) -> memoryview:
        """The dense bytes of a tensor whose bytes on disk are these; hashes are not looked at."""
        if name not in self._packed_names:
            return raw
        entry = self.entries[name]
        check_head(read_head(raw, name), entry.dtype, entry.shape, name)
        return unpack(raw, name)[1]

    def check(self, name: str, packed_sha256: str, dense_sha256: str) -> None:
        """Compare a tensor's hashes with those in the manifest. Raises ModelError."""
        for found, expected, what in zip(
            (packed_sha256, dense_sha256), self.hashes[name], ("packed", "dense"), strict=True
        ):
            if found != expected:
                raise ModelError(
                    f"{name}: its {what} bytes are not those that `ditprune convert` saw; "
                    "convert the dense folder again"
                )


def open_weights(folder: Path) -> Weights:
    """The tensors of a denoiser's folder, unpacked on reading where they are packed."""
    return CompactWeights(folder) if is_compact(folder) else Weights(folder)


def check_head(head: Head, dtype: str, shape: tuple[int, ...], name: str) -> None:
    """Refuse a packed weight that is not the one expected here. Raises ModelError."""
    if (head.dtype, head.shape) != (dtype, shape):
        raise ModelError(
            f"{name}: packed as {head.dtype} {list(head.shape)}, expected {dtype} {list(shape)}; "
            "convert the dense folder again"
        )


def write_manifest(
    folder: Path, dense: Weights, heads: Mapping[str, Head], hashes: Mapping[str, tuple[str, str]]
) -> None:
    """Make a folder with packed tensors a compact one: its manifest, and its config.json.

    Args:
        dense: the folder it comes from.
        heads: of the packed tensors.
        hashes: by tensor, of the packed and of the dense bytes.
    """
    config = (dense.shards[0].parent / "config.json").read_bytes().decode()
    content = {
        "format": FORMAT,
        "versions": manifest.versions(),
        "config": config,
        "headers": {shard.name: dense.header(shard)[8:].decode() for shard in dense.shards},
        "tensors": {
            name: {
                "form": heads[name].form if name in heads else "dense",
                "size_bytes": heads[name].size_bytes if name in heads else entry.size_bytes,
                "dense_bytes": entry.size_bytes,
                "sha256": hashes[name][0],
                "dense_sha256": hashes[name][1],
            }
            for name, entry in dense.entries.items()
        },
    }
    (folder / COMPACT_MANIFEST).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    text = json.dumps(_named(config.encode()), indent=2) + "\n"
    (folder / "config.json").write_text(text, encoding="utf-8")


def _named(config: bytes) -> dict[str, Any]:
    """The dense config.json with our name in it."""
    return {**json.loads(config), "quantization_config": QUANTIZATION_CONFIG}


def _dense_layout(packed: Weights, headers: Mapping[str, str]) -> Layout:
    """The layout in a manifest, which must be one of the tensors on disk. Raises ValueError."""
    if headers.keys() != {shard.name for shard in packed.shards}:
        raise ValueError("it lists other shards than there are")
    raw: dict[str, bytes] = {}
    entries: dict[str, Entry] = {}
    for shard in packed.shards:
        text = headers[shard.name].encode()
        raw[shard.name] = len(text).to_bytes(8, "little") + text
        found = list(entries_of(json.loads(text), len(text), shard))
        if {entry.name for entry in found} != {entry.name for entry in packed.in_shard(shard)}:
            raise ValueError(f"the dense header of {shard.name} lists other tensors than it holds")
        _check_places(found, len(raw[shard.name]))
        for entry in found:
            _check_entry(entry, packed)
            entries[entry.name] = entry
    return Layout(raw, entries)


def _check_places(entries: list[Entry], start: int) -> None:
    """That tensors follow each other without holes."""
    for entry in sorted(entries, key=lambda e: (e.offset, e.size_bytes)):
        if entry.offset != start or entry.size_bytes < 0:
            raise ValueError(f"{entry.name} begins at {entry.offset}, expected {start}")
        start += entry.size_bytes


def _check_entry(entry: Entry, packed: Weights) -> None:
    if not _is_packed(packed, entry):
        return
    if entry.dtype not in ITEM_BYTES or not _are_sizes(entry.shape):
        raise ValueError(f"{entry.name} is {entry.dtype} {list(entry.shape)} in the dense header")
    expected = math.prod(entry.shape) * ITEM_BYTES[entry.dtype]
    if entry.size_bytes != expected:
        raise ValueError(f"{entry.name} takes {entry.size_bytes} bytes, expected {expected}")


def _are_sizes(shape: tuple[Any, ...]) -> bool:
    return all(isinstance(size, int) and size > 0 for size in shape)


def _is_packed(packed: Weights, entry: Entry) -> bool:
    """Whether a dense tensor is stored as something else."""
    stored = packed.entries[entry.name]
    return (stored.dtype, stored.shape, stored.size_bytes) != (
        entry.dtype, entry.shape, entry.size_bytes,
    )  # fmt: skip
