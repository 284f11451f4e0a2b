"""What is done of shrinking a denoiser, kept on disk: the orders of units, and new tensors."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from ditprune.checkpoints.weights import Entry, read_header
from ditprune.method.columns import Removal
from ditprune.writing.files import write_beside
from ditprune.writing.json_file import parse_json, read_json
from ditprune.writing.tensors_file import read_metadata, save_tensors

_KEY = "work"


@dataclass(frozen=True, eq=False)
class BlockWork:
    """What becomes of one block, or of a denoiser that is taken whole.

    Args:
        tensors: that are new or smaller, by name, as they are written.
        gone: names of tensors that the new ones take the place of.
        ranks: by modulation layer, its rank, weights before and after, and error.
        notes: what a user should know.
        refined: errors before and after training; empty without.
    """

    tensors: Mapping[str, Tensor]
    gone: tuple[str, ...] = ()
    ranks: Mapping[str, Sequence[float]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    refined: Mapping[str, Any] = field(default_factory=dict)


class KeptWork:
    """The files of one denoiser in a folder of their own; each appears whole."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        self._folder = folder

    def survey(self) -> dict[str, Any] | None:
        """What the first pass gave; None where it has not ended."""
        file = self._folder / "survey.json"
        return read_json(file) if file.is_file() else None

    def keep_survey(self, orders: Mapping[str, Sequence[Removal]], scale: float) -> None:
        """Keep what the first pass gave."""
        content = {
            "scale": scale,
            "orders": {name: [asdict(step) for step in order] for name, order in orders.items()},
        }
        with write_beside(self._folder / "survey.json") as part:
            part.write_text(json.dumps(content), encoding="utf-8")

    def is_done(self, number: int) -> bool:
        return self._file(number).is_file()

    def keep(self, number: int, work: BlockWork) -> None:
        """Keep what becomes of a block."""
        record = {
            "gone": list(work.gone), "notes": list(work.notes), "refined": dict(work.refined),
            "ranks": {name: list(values) for name, values in work.ranks.items()},
        }  # fmt: skip
        save_tensors(work.tensors, {_KEY: json.dumps(record)}, self._file(number))

    def record(self, number: int) -> BlockWork:
        """All of it but the tensors."""
        return _read(read_metadata(self._file(number)), {})

    def entries(self, count: int) -> dict[str, Entry]:
        """Where the new tensors of so many blocks lie, by name."""
        files = (self._file(number) for number in range(count))
        return {entry.name: entry for file in files for entry in read_header(file)}

    def _file(self, number: int) -> Path:
        return self._folder / f"block-{number:04}.safetensors"


def orders_from(survey: Mapping[str, Any]) -> dict[str, list[Removal]]:
    """The orders that a survey holds."""
    return {
        name: [Removal(s["group"], tuple(s["units"]), s["cost"], s["price"]) for s in order]
        for name, order in survey["orders"].items()
    }


def _read(metadata: Mapping[str, str], tensors: Mapping[str, Tensor]) -> BlockWork:
    content = parse_json(metadata[_KEY])
    return BlockWork(
        tensors, tuple(content["gone"]), content["ranks"], tuple(content["notes"]),
        content["refined"],
    )  # fmt: skip
