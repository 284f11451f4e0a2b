"""How are denoiser calls stored? As a folder of units, one safetensors file each.

A unit holds the denoiser calls of one sampling run: tensors as such, the rest as JSON in the
metadata. It is written whole or not at all. So a set that was interrupted goes on where it
stopped, and several processes can write one set together.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ditprune.calls import NUM_BINS, Call
from ditprune.errors import ModelError, OutputError
from ditprune.writing.files import ensure_folder, why
from ditprune.writing.json_file import MALFORMED, parse_json, read_json
from ditprune.writing.tensors_file import format_name, save_tensors

HEADER = "calibration_set.json"
_FORMAT = 2
_KEY = "ditprune.calls"
MOST_UNITS = 100_000  # what five digits of a file name can number
_MOST_BINS = 1000
_CALLS_IN_UNIT = 16  # of calls that were in memory


@dataclass(frozen=True)
class CalibrationSet:
    """A folder of units.

    Args:
        folder: where the units are.
        num_units: how many units the complete set has.
        protocol: how the calls were sampled.
        identity: what must not change between the runs that fill the set (weights, settings,
            versions); `guard` in the file.
    """

    folder: Path
    num_units: int
    protocol: Mapping[str, object]
    identity: Mapping[str, object]

    @property
    def num_bins(self) -> int:
        """The number of parts of the way that it was sampled in. Raises ModelError."""
        num_bins = self.protocol.get("num_bins", NUM_BINS)
        if not isinstance(num_bins, int) or not 1 <= num_bins <= _MOST_BINS:
            raise ModelError(
                f"{self.folder}: its num_bins is {num_bins!r}, expected 1 to {_MOST_BINS}; "
                "sample it again"
            )
        return num_bins

    def missing(self) -> list[int]:
        """The units that were not written yet."""
        return [unit for unit in range(self.num_units) if not self.file(unit).is_file()]

    def file(self, unit: int) -> Path:
        return self.folder / f"unit-{unit:05d}.safetensors"

    def write(self, unit: int, calls: Sequence[Call], notes: Mapping[str, object]) -> None:
        """Write one unit, all or nothing. Raises OutputError."""
        tensors: dict[str, Tensor] = {}
        records = [
            {
                "args": _encode(call.args, tensors, self.folder),
                "kwargs": _encode(dict(call.kwargs), tensors, self.folder),
                "place": call.place,
                "denoiser": call.denoiser,
            }
            for call in calls
        ]
        metadata = {_KEY: json.dumps({"calls": records, "notes": dict(notes)})}
        save_tensors(tensors, metadata, self.file(unit))

    def read(self, unit: int) -> tuple[list[Call], dict[str, object]]:
        """The calls of one unit and the notes beside them. Raises ModelError."""
        with _reading(self.file(unit)) as content:
            record = _records(content)
            tensors = {key: content.get_tensor(key) for key in content.keys()}  # noqa: SIM118
            calls = [_call(entry, tensors) for entry in record["calls"]]
            return calls, dict(record["notes"])

    def calls(self) -> Iterator[Call]:
        """All calls, with one unit in memory at a time. Raises ModelError."""
        for unit in range(self.num_units):
            yield from self.read(unit)[0]

    def num_calls(self) -> dict[str, int]:
        """The number of calls of each denoiser; no tensor is read. Raises ModelError."""
        counts: dict[str, int] = {}
        for unit in range(self.num_units):
            with _reading(self.file(unit)) as content:
                for record in _records(content)["calls"]:
                    name = str(record["denoiser"])
                    counts[name] = counts.get(name, 0) + 1
        return counts


# The errors that reading a damaged file raises.
_MALFORMED = (*MALFORMED, SafetensorError, OSError)


@contextmanager
def _reading(file: Path) -> Iterator[Any]:
    """An open unit; what goes wrong while it is read is a ModelError."""
    try:
        with safe_open(file, framework="pt") as content:
            yield content
    except _MALFORMED as error:
        raise ModelError(
            f"{file}: not a unit of a calibration set ({error}); remove it and sample again"
        ) from None


def _records(content: Any) -> dict[str, Any]:
    return dict(parse_json((content.metadata() or {}).get(_KEY, "")))


def save_calibration_set(
    calls: Sequence[Call], protocol: Mapping[str, object], folder: Path,
    notes: Mapping[str, object] | None = None,
) -> None:  # fmt: skip
    """Write calls as a complete set, all or nothing. Raises OutputError."""
    if folder.exists():
        raise OutputError(f"{folder}: exists; choose another place")
    # Refuse what cannot be stored before anything is written.
    for call in calls:
        _encode([call.args, dict(call.kwargs)], {}, folder)
    part = folder.with_name(f".{folder.name}.saving")
    shutil.rmtree(part, ignore_errors=True)
    units = range(0, max(1, len(calls)), _CALLS_IN_UNIT)
    try:
        call_set = start_calibration_set(part, len(units), protocol, {})
        for unit, first in enumerate(units):
            call_set.write(unit, calls[first : first + _CALLS_IN_UNIT], notes or {})
        part.rename(folder)
    except OSError as error:
        raise OutputError(why(folder, error)) from None
    finally:
        shutil.rmtree(part, ignore_errors=True)


def start_calibration_set(
    folder: Path, num_units: int, protocol: Mapping[str, object], identity: Mapping[str, object]
) -> CalibrationSet:
    """Make an empty set: a folder with its header, or no folder at all. Raises OutputError."""
    content = {
        "format": _FORMAT, "num_units": num_units, "protocol": dict(protocol),
        "guard": dict(identity),
    }  # fmt: skip
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    ensure_folder(part)
    try:
        (part / HEADER).write_text(json.dumps(content, indent=1), encoding="utf-8")
        part.rename(folder)
    except OSError as error:
        shutil.rmtree(part, ignore_errors=True)
        raise OutputError(why(folder, error)) from None
    return load_calibration_set(folder)


def load_calibration_set(folder: Path) -> CalibrationSet:
    """Open a set, complete or not. Raises ModelError for anything else."""
    if not (folder / HEADER).is_file():
        raise ModelError(f"{folder}: not a calibration set (no {HEADER} in it); sample one there")
    content = read_json(folder / HEADER)
    try:
        if content["format"] != _FORMAT:
            raise ValueError(f"format {content['format']}, this version reads {_FORMAT}")
        num_units = int(content["num_units"])
        if not 1 <= num_units <= MOST_UNITS:
            raise ValueError(f"{num_units} units, expected 1 to {MOST_UNITS}")
        return CalibrationSet(folder, num_units, dict(content["protocol"]), dict(content["guard"]))
    except _MALFORMED as error:
        raise ModelError(f"{folder}: not a calibration set ({error}); sample it again") from None


def _encode(tree: Any, tensors: dict[str, Tensor], folder: Path) -> Any:
    if isinstance(tree, Tensor) and format_name(tree.dtype):
        tensors[f"{len(tensors):06d}"] = tree.cpu().contiguous().clone()
        return {"tensor": f"{len(tensors) - 1:06d}"}
    if isinstance(tree, Mapping):
        return {"dict": {str(key): _encode(value, tensors, folder) for key, value in tree.items()}}
    if isinstance(tree, (list, tuple)):
        kind = "list" if isinstance(tree, list) else "tuple"
        return {kind: [_encode(value, tensors, folder) for value in tree]}
    if isinstance(tree, torch.dtype):
        return {"dtype": str(tree).removeprefix("torch.")}
    if tree is None or isinstance(tree, (bool, int, float, str)):
        return {"value": tree}
    kind = f"a tensor of {tree.dtype}" if isinstance(tree, Tensor) else type(tree).__name__
    raise OutputError(
        f"{folder}: a denoiser argument is {kind}, which cannot be stored; "
        "expected tensors, numbers, text and containers of them"
    )


def _decode(record: Any, tensors: Mapping[str, Tensor]) -> Any:
    ((kind, value),) = record.items()
    if kind == "tensor":
        return tensors[value]
    if kind == "dict":
        return {key: _decode(item, tensors) for key, item in value.items()}
    if kind in ("list", "tuple"):
        items = [_decode(item, tensors) for item in value]
        return items if kind == "list" else tuple(items)
    if kind == "dtype":
        dtype = getattr(torch, value, None)
        if not isinstance(dtype, torch.dtype):
            raise ValueError(f"unknown dtype '{value}'")
        return dtype
    if kind == "value":
        return value
    raise ValueError(f"unknown kind '{kind}'")


def _progress_t(record: Any) -> float | None:
    if record is None:
        return None
    if not 0 <= float(record) <= 1:
        raise ValueError(f"place {record}, expected 0 to 1")
    return float(record)


def _call(record: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Call:
    args, kwargs = (_decode(record[key], tensors) for key in ("args", "kwargs"))
    if not isinstance(args, tuple) or not isinstance(kwargs, dict):
        raise ValueError("a call's arguments are no tuple and no dict")
    return Call(args, kwargs, _progress_t(record["place"]), str(record["denoiser"]))
