"""How are masks stored in a file, with the records of the pruning that made them?

The file is a safetensors file with one tensor of bytes for each target, named `denoiser/target`.
Its metadata holds records of the manifest, so that a model to which the masks are applied can be
verified. Masks are written one at a time: space for the header is reserved first, and the header is
padded with spaces.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ditprune.checkpoints.compact.mask_bits import compressed, expanded
from ditprune.checkpoints.compact.packing import num_set
from ditprune.checkpoints.weights import Entry, Weights, dtype_of, read_header, read_range, sha256
from ditprune.errors import ModelError
from ditprune.targets.matrix import matrix_shape
from ditprune.writing.files import write_beside
from ditprune.writing.json_file import MALFORMED, parse_json
from ditprune.writing.tensors_file import Stored, header, read_metadata

# The parts of a manifest that a mask file holds.
RECORDS = ("recipe", "cag_threshold", "base", "skipped", "left_out", "targets")
_FORMAT = 1
_KEY = "ditprune.mask"
_HASH = "0" * 64

_Records = Mapping[str, Mapping[str, Any]]


class MaskFile:
    """An open mask file; masks are read one at a time.

    Raises ModelError for anything that is not a complete, valid mask file.

    Attributes:
        denoisers: the records of each denoiser's manifest.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        if not file.is_file():
            raise ModelError(f"{file}: no such mask file; make one with `ditprune mask extract`")
        try:
            self._entries = {entry.name: entry for entry in read_header(file)}
            content = parse_json(read_metadata(file)[_KEY])
            if content["format"] != _FORMAT:
                raise ValueError(f"format {content['format']}, this version reads {_FORMAT}")
            self.denoisers: _Records = dict(content["denoisers"])
            self._hashes: Mapping[str, str] = dict(content["sha256"])
            self._shapes = _checked_shapes(self.denoisers, self._entries, self._hashes)
        except (*MALFORMED, ModelError) as error:
            raise ModelError(
                f"{file}: not a mask file ({error!r}); make one with `ditprune mask extract`"
            ) from None

    def shapes(self, denoiser: str) -> dict[str, tuple[int, int]]:
        """(C_out, C_in) of each target."""
        return {name: self._shapes[f"{denoiser}/{name}"] for name in self._targets(denoiser)}

    def bits(self, denoiser: str, target: str) -> np.ndarray:
        """The mask of a target, one bit for each weight, as in `mask_bits`. Raises ModelError."""
        key = f"{denoiser}/{target}"
        entry = self._entries[key]
        raw = read_range(self.file, entry.offset, entry.size_bytes)
        num_weights = math.prod(self._shapes[key])
        bits = expanded(raw, num_weights, f"{self.file}: {target}")
        num_zero = num_weights - num_set(bits)
        expected = self._targets(denoiser)[target]["num_zero"]
        if sha256(bits.data) != self._hashes[key] or num_zero != expected:
            raise ModelError(
                f"{self.file}: {target} is not the mask that was extracted; extract it again"
            )
        return bits

    def _targets(self, denoiser: str) -> Mapping[str, Any]:
        return self.denoisers[denoiser]["targets"]


def write_masks(
    file: Path, denoisers: _Records, masks: Iterable[tuple[str, np.ndarray]], replaces: bool
) -> int:
    """Write masks, all or nothing; returns the size of the file in bytes.

    Args:
        denoisers: the records of each denoiser, with one for every target.
        masks: `denoiser/target` and its mask, for every target.
        replaces: whether a file that is there may be replaced.

    Raises OutputError, and what `masks` raises.
    """
    sizes = {
        f"{denoiser}/{name}": -(-math.prod(record["shape"]) // 8)
        for denoiser, records in denoisers.items()
        for name, record in records["targets"].items()
    }
    room_bytes = len(_header(denoisers, sizes, dict.fromkeys(sizes, _HASH)))
    hashes: dict[str, str] = {}
    written: dict[str, int] = {}
    with write_beside(file, replaces) as part, part.open("wb") as opened:
        opened.seek(room_bytes)
        for key, bits in masks:
            small = compressed(bits)
            written[key], hashes[key] = len(small), sha256(bits.data)
            opened.write(small)
        size_bytes = opened.tell()
        opened.seek(0)
        opened.write(_header(denoisers, written, hashes, room_bytes))
    return size_bytes


def check_targets(weights: Weights, shapes: Mapping[str, tuple[int, int]]) -> None:
    """Refuse weights that lack these targets or have other shapes. Raises ModelError."""
    folder = weights.shards[0].parent
    for target, shape in shapes.items():
        entry = weights.entries.get(f"{target}.weight")
        if entry is None:
            raise ModelError(
                f"{folder}: has no '{target}.weight', which the mask needs; expected a model of "
                "the same class and size"
            )
        try:
            stored_shape = matrix_shape(entry.shape)
        except ValueError as error:
            raise ModelError(f"{folder}: {target}.weight: {error}") from None
        if stored_shape != tuple(shape):
            raise ModelError(
                f"{folder}: {target}.weight is {list(stored_shape)}, its mask {list(shape)}; "
                "expected a model of the same class and size"
            )
        dtype_of(entry)


def _header(
    denoisers: _Records, sizes: Mapping[str, int], hashes: Mapping[str, str], room_bytes: int = 0
) -> bytes:
    content = {"format": _FORMAT, "denoisers": denoisers, "sha256": dict(hashes)}
    stored = (Stored(key, "U8", (size,), size) for key, size in sizes.items())
    return header({_KEY: json.dumps(content)}, stored, room_bytes)


def _checked_shapes(
    denoisers: _Records, entries: Mapping[str, Entry], hashes: Mapping[str, str]
) -> dict[str, tuple[int, int]]:
    """The shape of each target.

    Raises ValueError if a record is missing or impossible, or if records and tensors differ.
    """
    shapes = {}
    for denoiser, records in denoisers.items():
        for key in RECORDS:
            if key not in records:
                raise ValueError(f"{denoiser} has no {key!r}")
        if not isinstance(records["base"], dict):
            raise ValueError(f"the base of {denoiser} is {records['base']!r}")
        for name, record in records["targets"].items():
            num_out, num_in = record["shape"]
            num_zero = record["num_zero"]
            if not all(isinstance(size, int) and size > 0 for size in (num_out, num_in)):
                raise ValueError(f"{name} has the shape {record['shape']}")
            if not isinstance(num_zero, int) or not 0 <= num_zero <= num_out * num_in:
                raise ValueError(f"{name} has {num_zero!r} zeros among {num_out * num_in} weights")
            shapes[f"{denoiser}/{name}"] = (num_out, num_in)
    if not shapes or shapes.keys() != entries.keys() or shapes.keys() != hashes.keys():
        raise ValueError("its records and its masks are of different targets")
    return shapes
