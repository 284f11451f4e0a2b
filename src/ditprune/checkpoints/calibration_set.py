"""A calibration set ⇄ a folder: the tensors of denoiser calls in safetensors, the rest in JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ditprune.calls import Call
from ditprune.checkpoints.locate import read_json
from ditprune.checkpoints.output import staged_folder
from ditprune.errors import ModelError, OutputError

_FORMAT = 1
_TENSORS, _CALLS = "calls.safetensors", "calls.json"


def save(calls: Sequence[Call], protocol: Mapping[str, object], folder: Path) -> None:
    """Write calls as a new folder, all or nothing. Raises OutputError."""
    tensors: dict[str, Tensor] = {}

    def encode(tree: Any) -> Any:
        if isinstance(tree, Tensor):
            tensors[f"{len(tensors):06d}"] = tree.cpu().contiguous().clone()
            return {"tensor": f"{len(tensors) - 1:06d}"}
        if isinstance(tree, Mapping):
            return {"dict": {str(key): encode(value) for key, value in tree.items()}}
        if isinstance(tree, (list, tuple)):
            kind = "list" if isinstance(tree, list) else "tuple"
            return {kind: [encode(value) for value in tree]}
        if tree is None or isinstance(tree, (bool, int, float, str)):
            return {"value": tree}
        raise OutputError(
            f"{folder}: a denoiser argument is {type(tree).__name__}, which cannot be stored; "
            "expected tensors, numbers, text and containers of them"
        )

    records = [{"args": encode(call.args), "kwargs": encode(call.kwargs)} for call in calls]
    with staged_folder(folder) as part:
        save_file(tensors, part / _TENSORS)
        content = {"format": _FORMAT, "protocol": dict(protocol), "calls": records}
        (part / _CALLS).write_text(json.dumps(content), encoding="utf-8")


def load(folder: Path) -> tuple[list[Call], dict[str, object]]:
    """Read calls and their protocol. Raises ModelError for anything else."""
    content = read_json(folder / _CALLS)
    try:
        tensors = load_file(folder / _TENSORS)

        def decode(record: Any) -> Any:
            ((kind, value),) = record.items()
            if kind == "tensor":
                return tensors[value]
            if kind == "dict":
                return {key: decode(item) for key, item in value.items()}
            if kind in ("list", "tuple"):
                items = [decode(item) for item in value]
                return items if kind == "list" else tuple(items)
            if kind == "value":
                return value
            raise ValueError(f"unknown kind '{kind}'")

        if content["format"] != _FORMAT:
            raise ValueError(f"format {content['format']}, this version reads {_FORMAT}")
        calls = [Call(decode(c["args"]), decode(c["kwargs"])) for c in content["calls"]]
        return calls, dict(content["protocol"])
    except (
        KeyError, ValueError, TypeError, AttributeError, RecursionError, SafetensorError, OSError,
    ) as error:  # fmt: skip
        raise ModelError(f"{folder}: not a calibration set ({error}); sample it again") from None
