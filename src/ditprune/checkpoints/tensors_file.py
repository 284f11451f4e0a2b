"""Named tensors and a few words ⇄ one safetensors file, written whole or not at all."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ditprune.checkpoints.output import write_beside
from ditprune.errors import ModelError


def save(tensors: Mapping[str, Tensor], metadata: Mapping[str, str], file: Path) -> None:
    """Write them. Raises OutputError."""
    with write_beside(file) as part:
        save_file({n: t.contiguous() for n, t in tensors.items()}, part, metadata=dict(metadata))


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
