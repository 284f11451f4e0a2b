"""How is one denoiser of a folder shrunk: surveyed, decided, fitted, block by block?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod
from pathlib import Path

import torch
from torch import Tensor, nn

from ditprune.calls import Call
from ditprune.checkpoints.skeleton import skeleton
from ditprune.checkpoints.weights import Weights
from ditprune.denoiser.blockwise.chain import Chain
from ditprune.denoiser.blockwise.find import find_chain
from ditprune.denoiser.blockwise.residence import InMemory, OnDisk, Residence
from ditprune.denoiser.pipeline import load_denoiser
from ditprune.denoiser.placement import Placement
from ditprune.denoiser.rows import to_placement
from ditprune.method.columns import Removal
from ditprune.method.low_rank import LowRankFit
from ditprune.progress import Progress
from ditprune.pruning.update.blockwise.room import place_states
from ditprune.shrinking.in_memory import MAX_MOMENT_BYTES, DemandStream
from ditprune.shrinking.kept_work import BlockWork, KeptWork, orders_from
from ditprune.shrinking.modulation import ModulationFitter, Wanted
from ditprune.shrinking.moments import BlockDemand, Road, collect_by_block, output_square
from ditprune.shrinking.plan import ShrinkPlan
from ditprune.shrinking.prices import NOTHING, Prices, Size
from ditprune.shrinking.readers import fitted
from ditprune.shrinking.recipe import ShrinkRecipe
from ditprune.shrinking.survey import block_paths, fitter_of, orders_in, plan_of, units_of
from ditprune.shrinking.units import Cut, UnitGroup, Whole


@dataclass(frozen=True, eq=False)
class Surveyed:
    """What a denoiser has that can go.

    Args:
        whole: attentions and MLPs whose units all stay.
    """

    blocks: Sequence[str]
    groups: Mapping[str, UnitGroup]
    whole: Sequence[Whole]
    prices: Prices


class FolderRun:
    """The work on one denoiser of a folder.

    Where its blocks chain, one of them is in memory at a time; else all of it is loaded, and taken
    as one block.

    Args:
        folder: of the denoiser.
        work: a folder for what is done, and for hidden states that memory does not hold.
    """

    def __init__(
        self, folder: Path, calls: Sequence[Call], recipe: ShrinkRecipe, placement: Placement,
        work: Path, progress: Progress,
    ) -> None:  # fmt: skip
        self.kept, self._work, self._progress = KeptWork(work), work, progress
        self._folder, self.recipe, self._placement = folder, recipe, placement
        self._weights = Weights(folder)
        self._calls = [to_placement(call, placement.device, placement.dtype) for call in calls]
        self.denoiser, self._residence, self._road = self._ground()

    def _ground(self) -> tuple[nn.Module, Residence, Road | None]:
        placement, work = self._placement, self._work
        blocks = block_paths(skeleton(self._folder), self.recipe)
        disk = OnDisk(self._folder, blocks, placement)
        chain = find_chain(disk.denoiser, blocks, self._calls, disk)
        if not isinstance(chain, Chain):
            denoiser = load_denoiser(self._folder, placement)
            return denoiser, InMemory(denoiser), None
        make, every = place_states(
            chain, self._calls, disk, work, placement.device, self._left_bytes(blocks), True
        )
        return disk.denoiser, disk, Road(chain, disk, make, every)

    def _left_bytes(self, blocks: Sequence[str]) -> int | None:
        """Memory for hidden states and gradients; None without a limit."""
        limit = self._placement.max_memory
        if limit is None:
            return None
        itemsize = self._placement.dtype.itemsize
        sizes = dict.fromkeys(blocks, 0)
        rest = 0
        for name, entry in self._weights.entries.items():
            size = torch.Size(entry.shape).numel() * itemsize
            block = next((path for path in blocks if name.startswith(f"{path}.")), None)
            if block is None:
                rest += size
            else:
                sizes[block] += size
        return limit - rest - _COPIES_OF_BLOCK * max(sizes.values())

    @cached_property
    def surveyed(self) -> Surveyed:
        """The units, tried on a call, and what they cost."""
        call = self._calls[0]
        with self._residence.running():
            blocks = block_paths(self.denoiser, self.recipe)
            groups, whole = units_of(self.denoiser, blocks, call, self.recipe)
            prices = Prices.of(self.denoiser, call)
        return Surveyed(blocks, groups, whole, replace(prices, itemsizes=self._itemsizes(prices)))

    def _itemsizes(self, prices: Prices) -> dict[str, int]:
        """By tensor, the bytes of a number as it is written; none for what is in no file."""
        numbers = {name: prod(shape) for name, shape in prices.shapes.items()}
        entries = self._weights.entries
        return {
            name: entries[name].size_bytes // count if count and name in entries else 0
            for name, count in numbers.items()
        }

    @cached_property
    def plan(self) -> ShrinkPlan:
        """What can go, and at which cost."""
        survey = self.kept.survey()
        if survey is None:
            orders: dict[str, Sequence[Removal]] = {}
            squares: list[float] = []
            for _, demand in self._demands("measuring blocks", squares):
                orders |= orders_in(
                    self.denoiser, self.surveyed.groups, demand.layers, self.surveyed.prices,
                    self.recipe,
                )  # fmt: skip
            self.kept.keep_survey(orders, sum(squares))
            survey = self.kept.survey()
            assert survey is not None
        surveyed = self.surveyed
        plan = plan_of(
            self.denoiser, surveyed.groups, orders_from(survey), surveyed.prices, survey["scale"],
            self.recipe,
        )  # fmt: skip
        return plan if self.recipe.fit is None else replace(plan, saved=self._saved())

    def _saved(self) -> Size:
        """What the lower rank of modulation saves."""
        fitter, saved = self._fitter(self.recipe.modulation), NOTHING
        if isinstance(fitter, ModulationFitter):
            for path in self.surveyed.blocks:
                with self._residence.resident(path):
                    fits = fitter.fit(path).fits
                saved = saved.plus(self.surveyed.prices.saved(fits))
        return saved

    def fit(self, cut: Cut, modulation: Wanted) -> None:
        """Work out the new tensors of every block that is not done, and keep them."""
        numbers = {path: number for number, path in enumerate(self._parts())}
        undone = [path for path, number in numbers.items() if not self.kept.is_done(number)]
        if not undone:
            return
        fitter = self._fitter(modulation)
        for path, demand in self._demands("fitting blocks"):
            if path in undone:
                self.kept.keep(numbers[path], self._block_work(path, demand, cut, fitter))
                undone.remove(path)
            if not undone:
                break

    def works(self) -> Iterator[BlockWork]:
        """What became of every block, without its tensors."""
        return (self.kept.record(number) for number in range(len(self._parts())))

    def _parts(self) -> Sequence[str]:
        """The paths of blocks that are taken one by one; of the denoiser, where they are not."""
        return [""] if self._road is None else self._road.chain.blocks

    def _demands(
        self, what: str, squares: list[float] | None = None
    ) -> Iterator[tuple[str, BlockDemand]]:
        groups = self.surveyed.groups
        if self._road is None:
            if squares is not None:
                squares.append(output_square(self.denoiser, self._calls))
            stream = DemandStream(
                self.denoiser, groups, self._calls, MAX_MOMENT_BYTES, self._progress
            )
            layers = {name: demand for part in stream() for name, demand in part.items()}
            yield "", BlockDemand(layers, None)
            return
        names: dict[str, list[str]] = {}
        for group in groups.values():
            names.setdefault(group.block, []).extend(c.layer for c in group.consumers)
        num_blocks = len(self._road.chain.blocks)

        def told(done: int) -> None:
            self._progress(what, done, 2 * num_blocks)

        keep = (lambda _: None) if squares is None else squares.append
        with (
            torch.inference_mode(False),
            closing(collect_by_block(self._road, names, self._calls, told, keep)) as steps,
        ):
            yield from steps

    def _fitter(self, wanted: Wanted) -> ModulationFitter | str | None:
        chain = None if self._road is None else self._road.chain
        with self._residence.running():
            return fitter_of(self.denoiser, self.surveyed.blocks, self._calls, wanted, chain)

    def _block_work(
        self, path: str, demand: BlockDemand, cut: Cut, fitter: ModulationFitter | str | None
    ) -> BlockWork:
        """The tensors of a block that change."""
        new = fitted(self._read, cut, demand.layers)
        tensors: dict[str, Tensor] = {}
        for name, values in new.items():
            shape = self._weights.entries[f"{name}.weight"].shape
            tensors[f"{name}.weight"] = values.weight.reshape(shape)
            if values.bias is not None:
                tensors[f"{name}.bias"] = values.bias
        inside = [name for name in cut.tensors if not path or name.startswith(f"{path}.")]
        for name in inside:
            whole = tensors[name] if name in tensors else self._weights.read(name)
            tensors[name] = cut.tensor(name, whole).contiguous()
        return self._with_ranks(path, tensors, fitter)

    def _with_ranks(
        self, path: str, tensors: dict[str, Tensor], fitter: ModulationFitter | str | None
    ) -> BlockWork:
        if not isinstance(fitter, ModulationFitter):
            return BlockWork(tensors)
        gone: list[str] = []
        ranks: dict[str, Sequence[float]] = {}
        notes: list[str] = []
        for block in [path] if path else self.surveyed.blocks:
            done = fitter.fit(block)
            notes += [f"{name} keeps its rank: {reason}" for name, reason in done.whole.items()]
            for name, fit in done.fits.items():
                tensors |= self._factors(name, fit)
                gone += [
                    n for n in (f"{name}.weight", f"{name}.bias") if n in self._weights.entries
                ]
                ranks[name] = (fit.rank, fit.num_weights, fit.num_before, fit.error)
        return BlockWork(tensors, tuple(gone), ranks, tuple(notes))

    def _factors(self, name: str, fit: LowRankFit) -> dict[str, Tensor]:
        """The two Linears in the place of a layer, in the dtype that it is stored in."""
        dtype = self._read(name)[0].dtype
        parts = {"down.weight": fit.down, "up.weight": fit.up, "up.bias": fit.bias}
        return {f"{name}.{part}": tensor.to(dtype).contiguous() for part, tensor in parts.items()}

    def _read(self, name: str) -> tuple[Tensor, Tensor | None]:
        """A layer's weight and bias as they are stored, on the device."""
        entries, device = self._weights.entries, self._placement.device
        names = [n for n in (f"{name}.weight", f"{name}.bias") if n in entries]
        if not names:  # a modulation layer of low rank
            names = [f"{name}.up.weight", f"{name}.up.bias"]
        weight, *bias = (self._weights.read(n).to(device) for n in names)
        return weight, bias[0] if bias else None


_COPIES_OF_BLOCK = 4  # its weights, its moments, and the work on them
