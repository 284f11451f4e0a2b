"""How are statistics stored? In one safetensors file for all denoisers of a pipeline.

Tensors hold the sums of each state, once for all layers that share it. The metadata holds, by the
component name of each denoiser, which layer has which state, and the protocol.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ditprune.errors import StatisticsError
from ditprune.method.statistics.collected import Statistics
from ditprune.method.statistics.column_norm import ColumnNorm
from ditprune.writing.files import MALFORMED
from ditprune.writing.tensors_file import save_tensors

_FORMAT = 2
_KEY = "ditprune.statistics"


def save_statistics(statistics: Mapping[str, Statistics], file: Path) -> None:
    """Write the statistics of each denoiser, all or nothing. Raises OutputError."""
    tensors: dict[str, Tensor] = {}
    denoisers = {name: _record(name, stats, tensors) for name, stats in statistics.items()}
    record = {"format": _FORMAT, "denoisers": denoisers}
    save_tensors(tensors, {_KEY: json.dumps(record)}, file)


def _record(denoiser: str, statistics: Statistics, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """The record for the metadata; the sums go to `tensors`."""
    keys: dict[int, str] = {}
    layers = {}
    for name, state in statistics.column_norms.items():
        key = keys.setdefault(id(state), f"{denoiser}/column_norm.{name}")
        tensors.setdefault(key, state.sum_squares.cpu().contiguous())
        layers[name] = {"state": key, "tokens_in_bin": list(state.tokens_in_bin)}
    return {
        "fingerprints": dict(statistics.fingerprints),
        "num_calls": statistics.num_calls,
        "never_called": list(statistics.never_called),
        "protocol": dict(statistics.protocol),
        "num_inputs": dict(statistics.num_inputs),
        "unused": list(statistics.unused),
        "padding": {name: list(counts) for name, counts in statistics.padding.items()},
        "layers": layers,
    }


def load_statistics(file: Path) -> dict[str, Statistics]:
    """Read statistics. Raises StatisticsError for a missing, damaged or other file."""
    if not file.is_file():
        raise StatisticsError(
            f"{file}: no such statistics file; make one with `ditprune calibrate`"
        )
    try:
        with safe_open(file, framework="pt") as content:
            metadata = (content.metadata() or {}).get(_KEY)
            tensors = {key: content.get_tensor(key) for key in content.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise StatisticsError(
            f"{file}: not a complete safetensors file ({error}); calibrate again"
        ) from None
    try:
        record = json.loads(metadata or "")
        if record["format"] != _FORMAT:
            raise ValueError(f"format {record['format']}, this version reads {_FORMAT}")
        for key, sums in tensors.items():
            _check_sums(key, sums)
        return {str(name): _restore(stats, tensors) for name, stats in record["denoisers"].items()}
    except MALFORMED as error:
        reason = f"missing {error}" if isinstance(error, KeyError) else str(error)
        raise StatisticsError(
            f"{file}: not statistics of ditprune ({reason}); calibrate again"
        ) from None


def _check_sums(key: str, sums: Tensor) -> None:
    if sums.dtype != torch.float64 or sums.ndim != 2:
        raise ValueError(f"{key} is {sums.dtype} {list(sums.shape)}, not float64 [bins, C_in]")
    if not (sums.isfinite() & (sums >= 0)).all():
        raise ValueError(f"{key} holds a sum of squares that is negative, NaN or Inf")


def _restore(record: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Statistics:
    states: dict[str, ColumnNorm] = {}
    norms = {}
    for name, layer in record["layers"].items():
        key, counts = layer["state"], tuple(int(count) for count in layer["tokens_in_bin"])
        if len(counts) != len(tensors[key]):
            raise ValueError(f"{name} counts tokens in {len(counts)} bins of {len(tensors[key])}")
        norms[name] = states.setdefault(key, ColumnNorm(tensors[key], counts))
    return Statistics(
        norms,
        {str(name): str(value) for name, value in record["fingerprints"].items()},
        int(record["num_calls"]),
        tuple(record["never_called"]),
        dict(record["protocol"]),
        {str(name): int(count) for name, count in record["num_inputs"].items()},
        tuple(record["unused"]),
        {name: (int(masked), int(total)) for name, (masked, total) in record["padding"].items()},
    )
