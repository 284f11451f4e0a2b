"""Where is what is done of each block kept? In memory."""

from __future__ import annotations

from collections.abc import Mapping

from ditprune.pruning.update.blockwise.run import BlockUpdates, Followed


class InMemoryResults:
    """Of a run that nobody goes on with."""

    def __init__(self) -> None:
        self.blocks: dict[int, BlockUpdates] = {}
        self._measured: dict[int, Mapping[str, Followed]] = {}

    def is_done(self, number: int) -> bool:
        return number in self.blocks

    def keep(self, number: int, updates: BlockUpdates) -> None:
        self.blocks[number] = updates

    def measured(self, number: int) -> Mapping[str, Followed] | None:
        return self._measured.get(number)

    def keep_measured(self, number: int, measured: Mapping[str, Followed]) -> None:
        self._measured[number] = measured
