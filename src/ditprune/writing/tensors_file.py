"""Named tensors and a few words ⇄ one safetensors file, written whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, deserialize, safe_open
from safetensors.torch import save as save_bytes
from torch import Tensor

from ditprune.errors import ModelError, OutputError
from ditprune.writing.files import write_beside


class Stored(NamedTuple):
    """One tensor of a file; `dtype` is the format's name of it."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    size_bytes: int


def header(metadata: Mapping[str, str], tensors: Iterable[Stored], room_bytes: int = 0) -> bytes:
    """A length and JSON, for tensors that follow one another in this order.

    Spaces fill it up to `room_bytes`, if it is shorter, and to a multiple of eight.
    """
    content: dict[str, Any] = {"__metadata__": dict(metadata)}
    begin = 0
    for name, dtype, shape, size_bytes in tensors:
        end = begin + size_bytes
        content[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}
        begin = end
    text = json.dumps(content, separators=(",", ":")).encode()
    text = text.ljust(room_bytes - 8)
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


@cache
def format_name(dtype: torch.dtype) -> str | None:
    """The format's name of a dtype, as the library writes it; None where it cannot."""
    try:
        ((_, entry),) = deserialize(save_bytes({"": torch.empty(1, dtype=dtype)}))
    except KeyError:
        return None
    holds_several = entry["shape"] != [1]  # numbers of four bits
    return None if holds_several else str(entry["dtype"])


def save_tensors(tensors: Mapping[str, Tensor], metadata: Mapping[str, str], file: Path) -> None:
    """Write them, without a copy of those that lie contiguous on the CPU. Raises OutputError.

    The library's own writer would do so through a file of a random name, which a kill leaves
    behind, and which nobody but its owner may read.
    """
    dtypes = {name: format_name(tensor.dtype) for name, tensor in tensors.items()}
    for name, dtype in dtypes.items():
        if dtype is None:
            raise OutputError(
                f"{file}: {name} is of {tensors[name].dtype}, which a safetensors file cannot "
                "hold; use another dtype"
            )
    # Large numbers first, so that every tensor is aligned.
    names = sorted(tensors, key=lambda name: (-tensors[name].itemsize, name))
    stored = (
        Stored(name, str(dtypes[name]), tuple(tensors[name].shape), tensors[name].nbytes)
        for name in names
    )
    with write_beside(file) as part, part.open("wb") as stream:
        stream.write(header(metadata, stored))
        for name in names:
            stream.write(_raw(tensors[name]))


def _raw(tensor: Tensor) -> memoryview:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


def read_metadata(file: Path) -> dict[str, str]:
    """The words alone, without reading a tensor. Raises ModelError for a file that is not whole."""
    with _opened(file) as stream:
        return dict(stream.metadata() or {})


def load_tensors(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
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
