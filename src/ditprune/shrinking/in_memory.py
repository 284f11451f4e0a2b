"""How is a denoiser in memory shrunk?"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from ditprune.calls import Call
from ditprune.checkpoints.shrunk.form import Form, mark_, shrunk_form
from ditprune.checkpoints.shrunk.low_rank import Factors, set_low_rank_
from ditprune.checkpoints.shrunk.resize import resize_
from ditprune.denoiser.blockwise.chain import Chain
from ditprune.denoiser.blockwise.find import find_chain
from ditprune.denoiser.blockwise.residence import InMemory
from ditprune.progress import Progress
from ditprune.pruning.update.blockwise.room import place_states
from ditprune.shrinking.chosen import CutChoice, chosen_by
from ditprune.shrinking.in_place import cut_
from ditprune.shrinking.kept_work import WorkInMemory
from ditprune.shrinking.moments import Road
from ditprune.shrinking.new_tensors import Terrain
from ditprune.shrinking.one_denoiser import ShrinkRun
from ditprune.shrinking.outcome import ShrinkOutcome, shrink_outcome
from ditprune.shrinking.prices import Prices
from ditprune.shrinking.recipe import ShrinkRecipe
from ditprune.shrinking.survey import block_paths, numbers_after
from ditprune.shrinking.units import Cut

MAX_MOMENT_BYTES = 4_000_000_000


@dataclass(frozen=True, eq=False)
class Smaller:
    """What a denoiser will become; it is not changed yet."""

    denoiser: nn.Module
    call: Call
    run: ShrinkRun
    chosen: CutChoice
    work: WorkInMemory


def shrink_denoiser_(
    denoiser: nn.Module, calls: Sequence[Call], recipe: ShrinkRecipe, progress: Progress,
    max_bytes: int = MAX_MOMENT_BYTES,
) -> ShrinkOutcome:  # fmt: skip
    """Shrink a denoiser in place.

    Raises DitpruneError with the denoiser as it was.
    """
    return make_smaller_(smaller_of(denoiser, calls, recipe, progress, max_bytes))


def smaller_of(
    denoiser: nn.Module, calls: Sequence[Call], recipe: ShrinkRecipe, progress: Progress,
    max_bytes: int = MAX_MOMENT_BYTES,
) -> Smaller:  # fmt: skip
    """Work out what a denoiser becomes. Raises DitpruneError."""
    work = WorkInMemory()
    with tempfile.TemporaryDirectory() as folder:
        terrain = _terrain(denoiser, calls, recipe, Path(folder), max_bytes)
        run = ShrinkRun(terrain, calls, recipe, work, progress)
        chosen = chosen_by(run.plan, recipe)
        run.carry_out(chosen)
    return Smaller(denoiser, calls[0], run, chosen, work)


def make_smaller_(ready: Smaller) -> ShrinkOutcome:
    """Make a denoiser what was worked out."""
    denoiser, run, chosen = ready.denoiser, ready.run, ready.chosen
    ranks = {layer: values for part in run.works() for layer, values in part.ranks.items()}
    _apply_(denoiser, chosen.cut, ready.work, list(ranks))
    after = Prices.of(denoiser, ready.call).size()
    whole, notes = run.surveyed.whole, run.notes()
    return shrink_outcome(run.plan, chosen, run.recipe, after, whole, ranks, notes)


def _terrain(
    denoiser: nn.Module, calls: Sequence[Call], recipe: ShrinkRecipe, folder: Path, max_bytes: int
) -> Terrain:
    residence, stored = InMemory(denoiser), denoiser.state_dict()
    blocks = block_paths(denoiser, recipe)
    chain, road = find_chain(denoiser, blocks, calls, residence), None
    if isinstance(chain, Chain):
        device = next(denoiser.parameters()).device
        make, every = place_states(chain, calls, residence, folder, device, None, True)
        road = Road(chain, residence, make, every)
    sizes = {name: tensor.element_size() for name, tensor in stored.items()}
    return Terrain(denoiser, residence, road, stored.__getitem__, stored.keys(), sizes, max_bytes)


@torch.no_grad()
def _apply_(denoiser: nn.Module, cut: Cut, work: WorkInMemory, ranks: Sequence[str]) -> None:
    """Give a denoiser its new tensors, numbers and form."""
    numbers, tensors = numbers_after(denoiser, cut), work.tensors()
    parts = ("down.weight", "up.weight", "up.bias")
    factors = {name: Factors(*(tensors.pop(f"{name}.{part}") for part in parts)) for name in ranks}
    cut_(denoiser, cut)
    device = next(denoiser.parameters()).device
    resize_(denoiser, {name: tensor.to(device) for name, tensor in tensors.items()}, {})
    set_low_rank_(denoiser, factors)
    form = Form(numbers, {}, {name: len(factor.down) for name, factor in factors.items()})
    mark_(denoiser, shrunk_form(denoiser).then(form))
