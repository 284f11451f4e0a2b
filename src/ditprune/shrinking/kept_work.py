"""What is done of shrinking a denoiser: the orders of units, new tensors, trained ones.

Kept in memory, or on disk for the run that goes on after a kill.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from ditprune.checkpoints.weights import Entry, read_header
from ditprune.method.columns import Removal
from ditprune.pruning.update.blockwise.gains import BlockGains
from ditprune.pruning.update.blockwise.run import BlockRefined
from ditprune.shrinking.train import TrainedBlock
from ditprune.writing.files import write_beside
from ditprune.writing.json_file import parse_json, read_json
from ditprune.writing.tensors_file import load_tensors, read_metadata, save_tensors

_KEY = "work"


@dataclass(frozen=True, eq=False)
class BlockWork:
    """What becomes of one block, or of a denoiser that is taken whole.

    Args:
        tensors: that are new or smaller, by name, as they are written.
        gone: names of tensors that the new ones take the place of.
        ranks: by modulation layer, its rank, weights before and after, and error.
        notes: what a user should know.
    """

    tensors: Mapping[str, Tensor]
    gone: tuple[str, ...] = ()
    ranks: Mapping[str, Sequence[float]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class FirstPass:
    """What the first pass gave.

    Args:
        orders: by group, in which order its units go.
        scale: the sum of squares of what the denoiser predicts.
    """

    orders: Mapping[str, Sequence[Removal]]
    scale: float


class KeptWork(Protocol):
    """Where it is kept; blocks have numbers from 0."""

    def survey(self) -> FirstPass | None:
        """None where the first pass has not ended."""

    def keep_survey(self, survey: FirstPass) -> None: ...

    def block(self, number: int) -> BlockWork | None:
        """None of a block that is not done."""

    def record(self, number: int) -> BlockWork | None:
        """The same without tensors, where they are not in memory."""

    def keep(self, number: int, work: BlockWork, gains: BlockGains | None) -> None: ...

    def gains(self, number: int) -> BlockGains | None:
        """How much the output follows a block; None where no gradient comes to it."""

    def trained(self, number: int) -> TrainedBlock | None:
        """None of a block that was not trained."""

    def refined(self, number: int) -> BlockRefined | None:
        """What its training gave; None of one that was not trained."""

    def keep_trained(self, number: int, trained: TrainedBlock) -> None: ...


class WorkInMemory:
    """For a denoiser in memory."""

    def __init__(self) -> None:
        self._survey: FirstPass | None = None
        self._blocks: dict[int, BlockWork] = {}
        self._gains: dict[int, BlockGains | None] = {}
        self._trained: dict[int, TrainedBlock] = {}

    def survey(self) -> FirstPass | None:
        return self._survey

    def keep_survey(self, survey: FirstPass) -> None:
        self._survey = survey

    def block(self, number: int) -> BlockWork | None:
        return self._blocks.get(number)

    def record(self, number: int) -> BlockWork | None:
        return self._blocks.get(number)

    def keep(self, number: int, work: BlockWork, gains: BlockGains | None) -> None:
        self._blocks[number], self._gains[number] = work, gains

    def gains(self, number: int) -> BlockGains | None:
        return self._gains.get(number)

    def trained(self, number: int) -> TrainedBlock | None:
        return self._trained.get(number)

    def refined(self, number: int) -> BlockRefined | None:
        trained = self._trained.get(number)
        return None if trained is None else trained.refined

    def keep_trained(self, number: int, trained: TrainedBlock) -> None:
        self._trained[number] = trained

    def tensors(self) -> dict[str, Tensor]:
        """All new tensors, by name."""
        each = [work.tensors for work in self._blocks.values()]
        each += [trained.tensors for trained in self._trained.values()]
        return {name: tensor for tensors in each for name, tensor in tensors.items()}


class WorkInFolder:
    """The files of one denoiser in a folder of their own; each appears whole."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        self._folder = folder

    def survey(self) -> FirstPass | None:
        file = self._folder / "survey.json"
        if not file.is_file():
            return None
        content = read_json(file)
        return FirstPass(_orders_from(content["orders"]), content["scale"])

    def keep_survey(self, survey: FirstPass) -> None:
        orders = {name: [asdict(step) for step in o] for name, o in survey.orders.items()}
        with write_beside(self._folder / "survey.json") as part:
            part.write_text(json.dumps({"scale": survey.scale, "orders": orders}), "utf-8")

    def block(self, number: int) -> BlockWork | None:
        work = self.record(number)
        tensors = {} if work is None else load_tensors(self._file("block", number))[0]
        return work and replace(work, tensors=tensors)

    def record(self, number: int) -> BlockWork | None:
        file = self._file("block", number)
        if not file.is_file():
            return None
        record = parse_json(read_metadata(file)[_KEY])
        return BlockWork({}, tuple(record["gone"]), record["ranks"], tuple(record["notes"]))

    def keep(self, number: int, work: BlockWork, gains: BlockGains | None) -> None:
        if gains is not None:
            save_tensors(gains.tensors(), {}, self._file("gains", number))
        record = {
            "gone": list(work.gone), "notes": list(work.notes),
            "ranks": {name: list(values) for name, values in work.ranks.items()},
        }  # fmt: skip
        save_tensors(work.tensors, {_KEY: json.dumps(record)}, self._file("block", number))

    def gains(self, number: int) -> BlockGains | None:
        file = self._file("gains", number)
        return BlockGains.from_tensors(load_tensors(file)[0]) if file.is_file() else None

    def trained(self, number: int) -> TrainedBlock | None:
        refined = self.refined(number)
        if refined is None:
            return None
        return TrainedBlock(load_tensors(self._file("trained", number))[0], refined)

    def refined(self, number: int) -> BlockRefined | None:
        file = self._file("trained", number)
        if not file.is_file():
            return None
        record = parse_json(read_metadata(file)[_KEY])
        return BlockRefined(**{**record, "unreached": tuple(record["unreached"])})

    def keep_trained(self, number: int, trained: TrainedBlock) -> None:
        record = {_KEY: json.dumps(asdict(trained.refined))}
        save_tensors(trained.tensors, record, self._file("trained", number))

    def entries(self) -> dict[str, Entry]:
        """Where the new tensors lie, by name."""
        files = [f for kind in ("block", "trained") for f in self._folder.glob(f"{kind}-*")]
        return {entry.name: entry for file in files for entry in read_header(file)}

    def _file(self, kind: str, number: int) -> Path:
        return self._folder / f"{kind}-{number:04}.safetensors"


def _orders_from(orders: Mapping[str, Any]) -> dict[str, list[Removal]]:
    return {
        name: [Removal(s["group"], tuple(s["units"]), s["cost"], s["price"]) for s in order]
        for name, order in orders.items()
    }
