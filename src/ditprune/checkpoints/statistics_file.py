"""Statistics ⇄ one safetensors file: each shared state once, names and protocol in its metadata."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ditprune.checkpoints.output import write_beside
from ditprune.errors import StatisticsError
from ditprune.statistics.collected import Statistics
from ditprune.statistics.column_norm import ColumnNorm

_FORMAT = 1
_KEY = "ditprune.statistics"


def save(statistics: Statistics, file: Path) -> None:
    """Write statistics, all or nothing. Raises OutputError."""
    states: dict[int, tuple[str, ColumnNorm]] = {}
    layers = {}
    for name, state in statistics.column_norms.items():
        key, _ = states.setdefault(id(state), (f"column_norm.{name}", state))
        layers[name] = {"state": key, "num_tokens": state.num_tokens}
    record = {
        "format": _FORMAT,
        "fingerprints": dict(statistics.fingerprints),
        "num_calls": statistics.num_calls,
        "never_called": list(statistics.never_called),
        "protocol": dict(statistics.protocol),
        "layers": layers,
    }
    tensors = {key: state.sum_squares.cpu().contiguous() for key, state in states.values()}
    with write_beside(file) as part:
        save_file(tensors, part, metadata={_KEY: json.dumps(record)})


def load(file: Path) -> Statistics:
    """Read statistics. Raises StatisticsError for a file that is not one, whole and sane."""
    if not file.is_file():
        raise StatisticsError(
            f"{file}: no such statistics file; make one with `ditprune calibrate`"
        )
    try:
        with safe_open(file, framework="pt") as stream:
            metadata = (stream.metadata() or {}).get(_KEY)
            tensors = {key: stream.get_tensor(key) for key in stream.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise StatisticsError(
            f"{file}: not a complete safetensors file ({error}); calibrate again"
        ) from None
    try:
        record = json.loads(metadata or "")
        if record["format"] != _FORMAT:
            raise ValueError(f"format {record['format']}, this version reads {_FORMAT}")
        for key, sums in tensors.items():
            if sums.dtype != torch.float64 or sums.ndim != 1:
                raise ValueError(f"{key} is {sums.dtype} {list(sums.shape)}, not float64 [C_in]")
            if not (sums.isfinite() & (sums >= 0)).all():
                raise ValueError(f"{key} holds a sum of squares that is negative, NaN or Inf")
        states: dict[str, ColumnNorm] = {}
        norms = {}
        for name, layer in record["layers"].items():
            key = layer["state"]
            norms[name] = states.setdefault(key, ColumnNorm(tensors[key], int(layer["num_tokens"])))
        return Statistics(
            norms,
            {str(name): str(value) for name, value in record["fingerprints"].items()},
            int(record["num_calls"]),
            tuple(record["never_called"]),
            dict(record["protocol"]),
        )
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        reason = f"missing {error}" if isinstance(error, KeyError) else str(error)
        raise StatisticsError(
            f"{file}: not statistics of ditprune ({reason}); calibrate again"
        ) from None
