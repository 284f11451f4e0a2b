"""The first bytes of a safetensors file: what its tensors are and where they lie."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple


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
