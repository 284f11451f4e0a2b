"""Where are hidden states kept while the blocks run in turn? In memory, or in a file."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ditprune.calls import Call


class States:
    """What a block gave in each of `count` calls: nested tuples and lists of tensors, or None."""

    def __init__(self, count: int, device: torch.device | str = "cpu") -> None:
        self._trees: list[Any] = [None] * count
        self._device = device

    def __setitem__(self, number: int, tree: Any) -> None:
        self._trees[number] = _each(tree, lambda leaf: leaf.detach().to("cpu"))

    def __getitem__(self, number: int) -> Any:
        return _each(self._trees[number], lambda leaf: leaf.to(self._device))

    def close(self) -> None:
        """Let go of all of it."""
        self._trees = []


@dataclass(frozen=True)
class _Place:
    """Of one tensor in the file."""

    offset: int
    shape: tuple[int, ...]
    dtype: torch.dtype


class StatesOnDisk(States):
    """The same in a file of `folder` that has no name, so nothing of it stays after a kill."""

    def __init__(self, count: int, device: torch.device | str, folder: Path) -> None:
        super().__init__(count, device)
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - closed by close()
        self._size = 0

    def __setitem__(self, number: int, tree: Any) -> None:
        self._trees[number] = _each(tree, self._write)

    def __getitem__(self, number: int) -> Any:
        def read(leaf: Any) -> Any:
            return self._read(leaf) if isinstance(leaf, _Place) else leaf

        return Call((self._trees[number],)).map(read).args[0]

    def close(self) -> None:
        super().close()
        self._file.close()

    def _write(self, leaf: Tensor) -> _Place:
        raw = leaf.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        place = _Place(self._size, tuple(leaf.shape), leaf.dtype)
        self._file.seek(self._size)
        self._file.write(raw.data)
        self._size += raw.nbytes
        return place

    def _read(self, place: _Place) -> Tensor:
        tensor = torch.empty(place.shape, dtype=place.dtype)
        self._file.seek(place.offset)
        self._file.readinto(tensor.view(-1).view(torch.uint8).numpy().data)
        return tensor.to(self._device)


def tree_bytes(trees: Sequence[Any]) -> int:
    """What the tensors of these trees take together."""
    leaves = (leaf for tree in trees for leaf in Call((tree,)).leaves())
    return sum(leaf.nbytes for leaf in leaves if isinstance(leaf, Tensor))


def _each(tree: Any, change: Any) -> Any:
    def of(leaf: Any) -> Any:
        return change(leaf) if isinstance(leaf, Tensor) else leaf

    return Call((tree,)).map(of).args[0]
