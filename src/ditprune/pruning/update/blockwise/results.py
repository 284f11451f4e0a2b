"""Where is what is done of each block kept? In memory, or in a folder for the run that goes on."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path

from torch import Tensor

from ditprune.pruning.job import TargetOutcome
from ditprune.pruning.update.blockwise.gains import BlockGains
from ditprune.pruning.update.blockwise.run import BlockRefined, BlockUpdates, Followed
from ditprune.pruning.update.layers import TargetUpdate
from ditprune.targets.matrix import as_matrix
from ditprune.writing.json_file import parse_json
from ditprune.writing.tensors_file import load_tensors, read_metadata, save_tensors

Written = tuple[Tensor, TargetOutcome]
_KEY = "ditprune.block"
_PARTS = ("rows", "roots", "outside")


class InMemoryResults:
    """Of a run that nobody goes on with."""

    def __init__(self) -> None:
        self.blocks: dict[int, BlockUpdates] = {}
        self._measured: dict[int, Mapping[str, Followed]] = {}
        self._gains: dict[int, BlockGains | None] = {}

    def is_done(self, number: int) -> bool:
        return number in self.blocks

    def keep(self, number: int, updates: BlockUpdates) -> None:
        self.blocks[number] = updates

    def measured(self, number: int) -> Mapping[str, Followed] | None:
        return self._measured.get(number)

    def keep_measured(self, number: int, measured: Mapping[str, Followed]) -> None:
        self._measured[number] = measured

    def gains(self, number: int) -> BlockGains | None:
        return self._gains.get(number)

    def keep_gains(self, number: int, gains: BlockGains | None) -> None:
        self._gains[number] = gains

    def weights(self, number: int) -> Mapping[str, Tensor]:
        done = self.blocks.get(number)
        return {} if done is None else {name: u.weight for name, u in done.updates.items()}


class FolderResults:
    """A file for every block that is measured, and one for every block that is done; each appears
    whole or not at all.

    Args:
        write: gives a target's new weight as it is stored, and what was done to it.
        keeps_masks: whether the masks are kept too, for training that is yet to come.
    """

    def __init__(
        self, folder: Path, write: Callable[[str, TargetUpdate], Written], keeps_masks: bool = False
    ) -> None:
        self._folder, self._write, self._keeps_masks = folder, write, keeps_masks

    def is_done(self, number: int) -> bool:
        return self._updates(number).is_file()

    def keep(self, number: int, updates: BlockUpdates) -> None:
        written = {name: self._write(name, update) for name, update in updates.updates.items()}
        record = {
            "targets": {name: asdict(outcome) for name, (_, outcome) in written.items()},
            "few": list(updates.few),
            "refined": updates.refined and asdict(updates.refined),
        }
        if self._keeps_masks:
            masks = {name: update.keep for name, update in updates.updates.items()}
            save_tensors(masks, {}, self._masks(number))
        tensors = {name: weight for name, (weight, _) in written.items()}
        save_tensors(tensors, {_KEY: json.dumps(record)}, self._updates(number))

    def measured(self, number: int) -> Mapping[str, Followed] | None:
        file = self._measured(number)
        if not file.is_file():
            return None
        tensors, metadata = load_tensors(file)
        return {
            name: Followed(
                tuple(errors),
                tensors.get(f"{name}.rows"),
                tensors.get(f"{name}.roots"),
                tensors.get(f"{name}.outside"),
            )
            for name, errors in parse_json(metadata[_KEY]).items()
        }

    def keep_measured(self, number: int, measured: Mapping[str, Followed]) -> None:
        tensors = {
            f"{name}.{part}": getattr(seen, part)
            for name, seen in measured.items()
            for part in _PARTS
            if getattr(seen, part) is not None
        }
        errors = {name: list(seen.errors) for name, seen in measured.items()}
        save_tensors(tensors, {_KEY: json.dumps(errors)}, self._measured(number))

    def gains(self, number: int) -> BlockGains | None:
        file = self._gains(number)
        return BlockGains.from_tensors(load_tensors(file)[0]) if file.is_file() else None

    def keep_gains(self, number: int, gains: BlockGains | None) -> None:
        if gains is not None:
            save_tensors(gains.tensors(), {}, self._gains(number))

    def weights(self, number: int) -> Mapping[str, Tensor]:
        if not self.is_done(number):
            return {}
        tensors, _ = load_tensors(self._updates(number))
        return {name: as_matrix(weight) for name, weight in tensors.items()}

    def numbers(self) -> list[int]:
        """Of the blocks that are done."""
        files = sorted(self._folder.glob("updates-*.safetensors"))
        return [int(file.stem.rpartition("-")[2]) for file in files]

    def masks(self, number: int) -> Mapping[str, Tensor]:
        """True stays, [C_out, C_in], of the targets of a block that is done."""
        return load_tensors(self._masks(number))[0]

    def _masks(self, number: int) -> Path:
        return self._folder / f"masks-{number:04}.safetensors"

    def _updates(self, number: int) -> Path:
        return self._folder / f"updates-{number:04}.safetensors"

    def _measured(self, number: int) -> Path:
        return self._folder / f"measured-{number:04}.safetensors"

    def _gains(self, number: int) -> Path:
        return self._folder / f"gains-{number:04}.safetensors"


class WrittenBlocks(Mapping[str, Written]):
    """By target what blocks in a folder hold; one of them at a time is in memory."""

    def __init__(self, folder: Path) -> None:
        self._outcomes: dict[str, tuple[Path, TargetOutcome]] = {}
        self.few: list[str] = []
        self.refined: dict[int, BlockRefined] = {}
        self._file, self._tensors = Path(), dict[str, Tensor]()
        for file in sorted(folder.glob("updates-*.safetensors")):
            record = parse_json(read_metadata(file)[_KEY])
            self.few += record["few"]
            if record["refined"] is not None:
                refined = {**record["refined"], "unreached": tuple(record["refined"]["unreached"])}
                self.refined[int(file.stem.rpartition("-")[2])] = BlockRefined(**refined)
            for name, outcome in record["targets"].items():
                self._outcomes[name] = (file, TargetOutcome.from_json(outcome))

    def __getitem__(self, name: str) -> Written:
        file, outcome = self._outcomes[name]
        if file != self._file:
            self._file, (self._tensors, _) = file, load_tensors(file)
        return self._tensors[name], outcome

    def __iter__(self) -> Iterator[str]:
        return iter(self._outcomes)

    def __len__(self) -> int:
        return len(self._outcomes)
