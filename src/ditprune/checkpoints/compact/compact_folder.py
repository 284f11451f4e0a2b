"""How is a folder with packed weights read, laid out and described?

The package's docstring describes its files.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from ditprune.checkpoints.compact.head import ITEM_BYTES, Head, read_head
from ditprune.checkpoints.compact.packing import unpack_weight
from ditprune.checkpoints.shrunk.form import IN_COMPACT, KEY, is_form
from ditprune.checkpoints.weights import Entry, Layout, Weights, entries_of, laid_out, sha256
from ditprune.errors import ModelError
from ditprune.writing.files import COMPACT_MANIFEST, installed_versions, is_compact
from ditprune.writing.json_file import MALFORMED, parse_json, read_json

FORMAT = 1
METHOD = "ditprune"
# diffusers prints the name of a method that it does not know, so the name says what to do.
QUANT_METHOD = f"{METHOD}: do `pip install {METHOD}` and `import {METHOD}` before loading"
_QUANTIZATION_CONFIG = {"quant_method": QUANT_METHOD, "format": FORMAT}

_NOTE = (  # in the headers of packed shards
    "packed by ditprune: `import ditprune` before from_pretrained, or "
    "`ditprune convert FOLDER --to dense -o DENSE`"
)


class CompactWeights(Weights):
    """The dense tensors of a compact folder, unpacked and checked when they are read.

    Opening reads the headers only. Raises ModelError for anything that `convert` did not write.

    Attributes:
        packed: the tensors as they are stored.
        layout: of the dense shards.
        config: the dense config.json.
        hashes: for each tensor, those of the packed and of the dense bytes.
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
                name: (str(record["sha256"]), str(record["dense_sha256"]))
                for name, record in claims["tensors"].items()
            }
            self.layout = _dense_layout(self.packed, claims["headers"])
            if self.hashes.keys() != self.layout.entries.keys():
                raise ValueError("it lists other tensors than the shards hold")
        except MALFORMED as error:
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
        """The dense bytes of one tensor. Raises ModelError if a hash differs.

        Hashing takes longer than unpacking, so only the first read of a tensor compares hashes.
        """
        raw = self.packed.raw(self.packed.entries[entry.name])
        dense = self.dense(entry.name, raw)
        if entry.name not in self._checked:
            self.check(entry.name, sha256(raw), sha256(dense))
            self._checked.add(entry.name)
        return dense

    def read_slice(self, name: str, start: int, count: int) -> Tensor:
        """As for dense weights; keeps the unpacked tensor for the next slice of it."""
        if self._sliced is None or self._sliced[0] != name:
            self._sliced = name, self.read(name).reshape(-1)
        return self._sliced[1][start : start + count]

    def keeps_config(self, folder: Path) -> bool:
        """Whether config.json is the dense one with our quantization config."""
        try:
            return read_json(folder / "config.json") == _named(self.config)
        except (ModelError, *MALFORMED):
            return False

    def dense(self, name: str, raw: memoryview) -> memoryview:
        """The dense bytes of a tensor, from its bytes on disk; hashes are not compared."""
        if name not in self._packed_names:
            return raw
        entry = self.entries[name]
        check_head(read_head(raw, name), entry.dtype, entry.shape, name)
        return unpack_weight(raw, name)[1]

    def check(self, name: str, packed_sha256: str, dense_sha256: str) -> None:
        """Compare a tensor's hashes with those in the manifest. Raises ModelError."""
        for form, digest, expected in zip(
            ("packed", "dense"), (packed_sha256, dense_sha256), self.hashes[name], strict=True
        ):
            if digest != expected:
                raise ModelError(
                    f"{name}: its {form} bytes are not those that `ditprune convert` saw; "
                    "convert the dense folder again"
                )


def open_weights(folder: Path) -> Weights:
    """The tensors of a denoiser's folder, dense or compact; packed ones are unpacked on reading."""
    return CompactWeights(folder) if is_compact(folder) else Weights(folder)


def check_head(head: Head, dtype: str, shape: tuple[int, ...], name: str) -> None:
    """Refuse a packed weight of another dtype or shape. Raises ModelError."""
    if (head.dtype, head.shape) != (dtype, shape):
        raise ModelError(
            f"{name}: packed as {head.dtype} {list(head.shape)}, expected {dtype} {list(shape)}; "
            "convert the dense folder again"
        )


def packed_layout(weights: Weights, heads: Mapping[str, Head]) -> Layout:
    """The layout of the same shards with the tensors of `heads` packed.

    In each shard the packed tensors come first, as uint8. The others follow, those with the
    largest elements first, so that every tensor is aligned.
    """

    def packed(entry: Entry) -> Entry:
        if entry.name not in heads:
            return entry
        size_bytes = heads[entry.name].size_bytes
        return replace(entry, dtype="U8", shape=(size_bytes,), size_bytes=size_bytes)

    def rank(entry: Entry) -> tuple[bool, int]:
        return entry.name not in heads, -(entry.size_bytes // max(1, math.prod(entry.shape)))

    def in_shard(shard: Path) -> list[Entry]:
        return sorted(map(packed, weights.in_shard(shard)), key=rank)

    return laid_out(weights, in_shard, _NOTE)


def write_compact_manifest(
    folder: Path,
    dense: Weights,
    heads: Mapping[str, Head],
    written: Mapping[str, Mapping[str, Any]],
) -> None:
    """Write the compact manifest and config.json of a folder whose shards are written.

    Args:
        dense: the weights that were packed.
        heads: of the packed tensors.
        written: the record of each tensor, with the hashes of the packed and of the dense bytes.
    """
    config = (dense.shards[0].parent / "config.json").read_bytes().decode()
    content = {
        "format": FORMAT,
        "versions": installed_versions(),
        "config": config,
        "headers": {shard.name: dense.header(shard)[8:].decode() for shard in dense.shards},
        "tensors": {
            name: {
                "form": heads[name].form if name in heads else "dense",
                "size_bytes": heads[name].size_bytes if name in heads else entry.size_bytes,
                "dense_bytes": entry.size_bytes,
                "sha256": written[name]["sha256"],
                "dense_sha256": written[name]["source_sha256"],
            }
            for name, entry in dense.entries.items()
        },
    }
    (folder / COMPACT_MANIFEST).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    text = json.dumps(_named(config.encode()), indent=2) + "\n"
    (folder / "config.json").write_text(text, encoding="utf-8")


def _named(config: bytes) -> dict[str, Any]:
    """The dense config.json with our quantization config, which holds that of a shrunk model."""
    content = parse_json(config)
    form = {IN_COMPACT: content[KEY]} if is_form(content.get(KEY)) else {}
    return {**content, KEY: {**_QUANTIZATION_CONFIG, **form}}


def _dense_layout(packed: Weights, headers: Mapping[str, str]) -> Layout:
    """The dense layout that a manifest describes.

    Raises ValueError if it is not one of the tensors on disk.
    """
    if headers.keys() != {shard.name for shard in packed.shards}:
        raise ValueError("it lists other shards than there are")
    raw: dict[str, bytes] = {}
    entries: dict[str, Entry] = {}
    for shard in packed.shards:
        text = headers[shard.name].encode()
        raw[shard.name] = len(text).to_bytes(8, "little") + text
        in_shard = list(entries_of(parse_json(text), len(text), shard))
        if {entry.name for entry in in_shard} != {entry.name for entry in packed.in_shard(shard)}:
            raise ValueError(f"the dense header of {shard.name} lists other tensors than it holds")
        start = len(raw[shard.name])
        for entry in sorted(in_shard, key=lambda e: (e.offset, e.size_bytes)):
            if entry.offset != start or entry.size_bytes < 0:
                raise ValueError(f"{entry.name} begins at {entry.offset}, expected {start}")
            start += entry.size_bytes
            if _is_packed(packed, entry):
                _check_dense(entry)
        entries |= {entry.name: entry for entry in in_shard}
    return Layout(raw, entries)


def _check_dense(entry: Entry) -> None:
    """Raises ValueError unless a tensor is floating point, and its bytes are those of its shape."""
    are_sizes = all(isinstance(size, int) and size > 0 for size in entry.shape)
    if (
        entry.dtype not in ITEM_BYTES
        or not are_sizes
        or entry.size_bytes != math.prod(entry.shape) * ITEM_BYTES[entry.dtype]
    ):
        raise ValueError(
            f"{entry.name} is {entry.dtype} {list(entry.shape)} in {entry.size_bytes} bytes in "
            "the dense header"
        )


def _is_packed(packed: Weights, entry: Entry) -> bool:
    """Whether a dense tensor is stored in another form."""
    stored = packed.entries[entry.name]
    return (stored.dtype, stored.shape, stored.size_bytes) != (
        entry.dtype, entry.shape, entry.size_bytes,
    )  # fmt: skip
