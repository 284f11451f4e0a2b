"""Named tensors and a few words ⇄ one safetensors file, written whole or not at all."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, deserialize, safe_open
from safetensors.torch import save as save_bytes
from torch import Tensor

from ditprune.checkpoints.header import Stored, header
from ditprune.checkpoints.output import write_beside
from ditprune.errors import ModelError


def save(tensors: Mapping[str, Tensor], metadata: Mapping[str, str], file: Path) -> None:
    """Write them, without a copy of those that lie contiguous on the CPU. Raises OutputError.

    The library's own writer would do so through a file of a random name, which a kill leaves
    behind, and which nobody but its owner may read.
    """
    dtypes = _dtypes(tensors)
    # Large numbers first, so that every tensor is aligned.
    names = sorted(tensors, key=lambda name: (-tensors[name].itemsize, name))
    stored = (
        Stored(name, dtypes[name], tuple(tensors[name].shape), tensors[name].nbytes)
        for name in names
    )
    with write_beside(file) as part, part.open("wb") as stream:
        stream.write(header(metadata, stored))
        for name in names:
            stream.write(_raw(tensors[name]))


def _dtypes(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """The format's name of each tensor's dtype, as the library writes it."""
    empty = {name: torch.empty(0, dtype=tensor.dtype) for name, tensor in tensors.items()}
    return {entry[0]: entry[1]["dtype"] for entry in deserialize(save_bytes(empty))}


def _raw(tensor: Tensor) -> memoryview:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


def words(file: Path) -> dict[str, str]:
    """The words alone, without reading a tensor. Raises ModelError for a file that is not whole."""
    with _opened(file) as stream:
        return dict(stream.metadata() or {})


def load(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read them. Raises ModelError for a file that is not whole."""
    with _opened(file) as stream:
        names = list(stream.keys())
        return {name: stream.get_tensor(name) for name in names}, dict(stream.metadata() or {})


@contextmanager
def _opened(file: Path) -> Iterator[Any]:
    try:
        with safe_open(file, framework="pt") as stream:
            yield stream
    except (SafetensorError, OSError) as error:
        raise ModelError(
            f"{file}: not a complete safetensors file ({error}); remove it and start again"
        ) from None
