"""How is one denoiser shrunk: surveyed, decided, fitted and trained, block by block?"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor, nn

from ditprune.calls import Call
from ditprune.checkpoints.shrunk.low_rank import Factors, set_low_rank_
from ditprune.checkpoints.shrunk.resize import resize_
from ditprune.denoiser.blockwise.sweep import Step
from ditprune.method.columns import Removal
from ditprune.progress import Progress
from ditprune.shrinking.chosen import CutChoice
from ditprune.shrinking.in_place import cut_
from ditprune.shrinking.kept_work import BlockWork, FirstPass, KeptWork
from ditprune.shrinking.modulation import ModulationFitter, Wanted
from ditprune.shrinking.moments import (
    BlockDemand,
    Demand,
    collect_by_block,
    output_square,
)
from ditprune.shrinking.new_tensors import Terrain, layer_as_stored, smaller_tensors, with_ranks
from ditprune.shrinking.plan import ShrinkPlan
from ditprune.shrinking.prices import NOTHING, Prices, Size
from ditprune.shrinking.readers import Fitted, fitted
from ditprune.shrinking.recipe import ShrinkRecipe
from ditprune.shrinking.stages import DemandStages
from ditprune.shrinking.survey import block_paths, fitter_of, orders_in, plan_of, units_of
from ditprune.shrinking.train import SETTINGS, TrainedBlock, trained_blocks, trained_names
from ditprune.shrinking.twins import twin_of
from ditprune.shrinking.units import Cut, UnitGroup, Whole

UNTRAINED = "its blocks do not chain, so they were not trained"


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


class ShrinkRun:
    """The work on one denoiser, which is left as it is.

    Args:
        work: where what is done is kept.
    """

    def __init__(
        self, terrain: Terrain, calls: Sequence[Call], recipe: ShrinkRecipe, work: KeptWork,
        progress: Progress,
    ) -> None:  # fmt: skip
        self._terrain, self._calls, self.recipe = terrain, calls, recipe
        self._work, self._progress = work, progress
        self.denoiser = terrain.denoiser

    @cached_property
    def surveyed(self) -> Surveyed:
        """The units, tried on a call, and what they cost."""
        call = self._calls[0]
        with self._terrain.residence.running():
            blocks = block_paths(self.denoiser, self.recipe)
            groups, whole = units_of(self.denoiser, blocks, call, self.recipe)
            prices = Prices.of(self.denoiser, call)
        stored = {name: self._terrain.itemsizes.get(name, 0) for name in prices.shapes}
        return Surveyed(blocks, groups, whole, replace(prices, itemsizes=stored))

    @cached_property
    def plan(self) -> ShrinkPlan:
        """What can go, and at which cost."""
        surveyed = self.surveyed
        survey = self._work.survey()
        if survey is None:
            orders: dict[str, Sequence[Removal]] = {}
            squares: list[float] = []
            for demands in self._all_demands("measuring blocks", squares.append):
                orders |= orders_in(
                    self.denoiser, surveyed.groups, demands, surveyed.prices, self.recipe
                )
            survey = FirstPass(orders, sum(squares))
            self._work.keep_survey(survey)
        plan = plan_of(
            self.denoiser, surveyed.groups, survey.orders, surveyed.prices, survey.scale,
            self.recipe,
        )  # fmt: skip
        return plan if self.recipe.fit is None else replace(plan, saved=self._saved_by_ranks())

    def _saved_by_ranks(self) -> Size:
        """What the lower rank of modulation saves."""
        fitter, saved = self._fitter(self.recipe.modulation), NOTHING
        if isinstance(fitter, ModulationFitter):
            for path in self.surveyed.blocks:
                with self._terrain.residence.resident(path):
                    fits = fitter.fit(path).fits
                saved = saved.plus(self.surveyed.prices.saved(fits))
        return saved

    def carry_out(self, chosen: CutChoice) -> None:
        """Work out the new tensors of every block."""
        self._fit(chosen.cut, chosen.modulation)
        if self.recipe.preset == "best":
            self._train(chosen.cut)

    def works(self) -> list[BlockWork]:
        """What became of every block; where it is kept on disk, without tensors."""
        works = (self._work.record(number) for number in range(len(self._parts())))
        return [work for work in works if work is not None]

    def notes(self) -> tuple[str, ...]:
        """What a user should know beside the units that went."""
        notes = [note for work in self.works() for note in work.notes]
        if self.recipe.preset == "best" and self._terrain.road is None:
            notes.append(f"{type(self.denoiser).__name__}: {UNTRAINED}")
        for number, path in enumerate(self._parts()):
            refined = self._work.refined(number)
            if refined is not None and not refined.is_taken:
                notes.append(f"{path}: training did not help on rows kept aside, and was dropped")
        return tuple(notes)

    def _fit(self, cut: Cut, modulation: Wanted) -> None:
        numbers = {path: number for number, path in enumerate(self._parts())}
        undone = {path for path, number in numbers.items() if self._work.record(number) is None}
        if not undone:
            return
        fitter = self._fitter(modulation)
        if self._terrain.road is None:
            new: dict[str, Fitted] = {}
            for demands in self._stages.collected("fitting layers"):
                new |= fitted(self._layer, cut, demands)
            self._work.keep(0, self._block_work("", new, cut, fitter), None)
            return
        with closing(self._by_block("fitting blocks")) as steps:
            for path, demand in steps:
                if path in undone:
                    new = fitted(self._layer, cut, demand.layers)
                    work = self._block_work(path, new, cut, fitter)
                    self._work.keep(numbers[path], work, demand.gains)
                    undone.remove(path)
                if not undone:
                    return

    def _train(self, cut: Cut) -> None:
        road, groups = self._terrain.road, self.surveyed.groups
        paths = {group.block for group in groups.values()}
        numbers = [number for number, path in enumerate(self._parts()) if path in paths]
        if road is None or all(self._work.refined(number) for number in numbers):
            return
        with torch.inference_mode(False):
            done = trained_blocks(
                road, self._calls, self._work.gains, lambda step: self._smaller(step, cut),
                lambda step: trained_names(groups, step.block, step.path), self._work.trained,
                SETTINGS,
            )  # fmt: skip
            for number, trained in done:
                if self._work.refined(number) is None:
                    self._work.keep_trained(number, self._as_stored(trained))
                self._progress("training blocks", number + 1, len(road.chain.blocks))

    def _smaller(self, step: Step, cut: Cut) -> nn.Module:
        """A block as it was fitted, with tensors of its own where these are trained."""
        work = self._work.block(step.number)
        assert work is not None
        block, path = twin_of(step.block), step.path
        cut_(block, cut, prefix=path)
        new = dict(work.tensors)
        factors = {
            name.removeprefix(f"{path}."): Factors(
                *(new.pop(f"{name}.{part}") for part in ("down.weight", "up.weight", "up.bias"))
            )
            for name in work.ranks
        }
        like = next(step.block.parameters())
        for name in trained_names(self.surveyed.groups, step.block, path):
            new.setdefault(name, block.get_parameter(name.removeprefix(f"{path}.")).detach())
        below = {
            name.removeprefix(f"{path}."): tensor.to(like.device, like.dtype, copy=True)
            for name, tensor in new.items()
        }
        resize_(block, below, {})
        set_low_rank_(block, factors)
        return block

    def _as_stored(self, trained: TrainedBlock) -> TrainedBlock:
        tensors = {
            name: tensor.to("cpu", self._terrain.read(name).dtype).contiguous()
            for name, tensor in trained.tensors.items()
        }
        return TrainedBlock(tensors, trained.refined)

    def _parts(self) -> Sequence[str]:
        """The paths of blocks that are taken one by one; of the denoiser, where they are not."""
        return [""] if self._terrain.road is None else self._terrain.road.chain.blocks

    def _all_demands(
        self, what: str, output: Callable[[float], None]
    ) -> Iterator[Mapping[str, Demand]]:
        if self._terrain.road is not None:
            yield from (demand.layers for _, demand in self._by_block(what, output))
            return
        output(output_square(self.denoiser, self._calls))
        yield from self._stages.collected(what)

    def _by_block(
        self, what: str, output: Callable[[float], None] = lambda _: None
    ) -> Generator[tuple[str, BlockDemand], None, None]:
        """What is known of each block, on the way back."""
        road = self._terrain.road
        assert road is not None
        names: dict[str, list[str]] = {}
        for group in self.surveyed.groups.values():
            names.setdefault(group.block, []).extend(c.layer for c in group.consumers)
        total = 2 * len(road.chain.blocks)

        def told(done: int) -> None:
            self._progress(what, done, total)

        with (
            torch.inference_mode(False),
            closing(collect_by_block(road, names, self._calls, told, output)) as steps,
        ):
            yield from steps

    @cached_property
    def _stages(self) -> DemandStages:
        return DemandStages(
            self.denoiser,
            self.surveyed.groups,
            self._calls,
            self._terrain.max_bytes,
            self._progress,
        )

    def _fitter(self, wanted: Wanted) -> ModulationFitter | str | None:
        road, blocks = self._terrain.road, self.surveyed.blocks
        chain = None if road is None else road.chain
        with self._terrain.residence.running():
            return fitter_of(self.denoiser, blocks, self._calls, wanted, chain)

    def _block_work(
        self, path: str, new: Mapping[str, Fitted], cut: Cut,
        fitter: ModulationFitter | str | None,
    ) -> BlockWork:  # fmt: skip
        """The tensors of a block that change."""
        tensors = smaller_tensors(self._terrain, path, new, cut)
        if isinstance(fitter, str):
            return BlockWork(tensors, notes=(fitter,) if path == self._parts()[0] else ())
        if fitter is None:
            return BlockWork(tensors)
        blocks = [path] if path else self.surveyed.blocks
        return with_ranks(self._terrain, blocks, tensors, fitter)

    def _layer(self, name: str) -> tuple[Tensor, Tensor | None]:
        return layer_as_stored(self._terrain, name)
