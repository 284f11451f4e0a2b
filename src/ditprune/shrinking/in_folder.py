"""How is a model folder shrunk into another, with one block of a denoiser in memory?

Two passes go back through the blocks. The first tells what every unit costs; then it is known which
go. The second fits the layers behind them, and the block's new tensors are kept. What is done of
either is found again by the run that goes on after a kill.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from math import prod
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from ditprune.calls import Call
from ditprune.checkpoints.copy_folder import (
    beside,
    check_unchanged,
    copied_bytes,
    copy_identity,
    copy_other_files,
)
from ditprune.checkpoints.locate import ModelFolder
from ditprune.checkpoints.skeleton import combined_fingerprint, folder_fingerprints, skeleton
from ditprune.checkpoints.weights import Weights
from ditprune.denoiser.blockwise.chain import Chain
from ditprune.denoiser.blockwise.find import find_chain
from ditprune.denoiser.blockwise.residence import InMemory, OnDisk
from ditprune.denoiser.pipeline import load_denoiser
from ditprune.denoiser.placement import Placement
from ditprune.denoiser.rows import to_placement
from ditprune.errors import RecipeError
from ditprune.progress import Progress
from ditprune.pruning.job import base_of
from ditprune.pruning.update.blockwise.room import place_states
from ditprune.reporting import card
from ditprune.shrinking.chosen import CutChoice, chosen_by
from ditprune.shrinking.in_memory import MAX_MOMENT_BYTES
from ditprune.shrinking.kept_work import WorkInFolder
from ditprune.shrinking.like import Like
from ditprune.shrinking.manifest import (
    Lowered,
    Went,
    base_before,
    shrunk_claims,
    size_of,
)
from ditprune.shrinking.moments import Road
from ditprune.shrinking.new_tensors import Terrain
from ditprune.shrinking.one_denoiser import ShrinkRun
from ditprune.shrinking.outcome import ShrinkOutcome, outcome_from
from ditprune.shrinking.plan import ShrinkPlan
from ditprune.shrinking.prices import Prices
from ditprune.shrinking.recipe import ShrinkRecipe
from ditprune.shrinking.survey import block_paths
from ditprune.shrinking.write_folder import smaller_layout, write_form, write_tensors
from ditprune.writing.files import read_manifest, write_manifest
from ditprune.writing.staging import resumable_folder

_COPIES_OF_BLOCK = 4  # its weights, its moments, and the work on them
CallsOf = Callable[[str], Sequence[Call]]  # those of a denoiser, by its component


def shrink_folder(
    model: ModelFolder, out: Path, calls_of: CallsOf, recipes: Mapping[str, ShrinkRecipe],
    placement: Placement, overwrite: bool, progress: Progress,
    likes: Mapping[str, Like] = MappingProxyType({}),
) -> dict[str, ShrinkOutcome]:  # fmt: skip
    """Shrink every denoiser of a folder into another.

    `out` appears whole at the end or not at all. A killed run leaves its work beside `out`; the
    same call goes on with it.

    Args:
        likes: what goes, by component; what is not named is chosen by its cost.

    Raises DitpruneError: before any work where it can be known, else with `out` as it was.
    """
    weights = {name: Weights(folder) for name, folder in model.denoisers.items()}
    calls = {name: _calls_for(name, calls_of) for name in model.denoisers}
    identity = copy_identity(model, weights, _settings(calls, recipes, placement, likes))
    size_bytes = copied_bytes(model, weights)
    with resumable_folder(out, model.root, size_bytes, identity, overwrite) as staging:
        if not staging.is_written:
            copy_other_files(model, weights, staging.part)
            copied = beside(model, weights, staging.part)
            for name, folder in model.denoisers.items():
                work = staging.part / f".shrink-{name}"
                run, saved = _run(folder, calls[name], recipes[name], placement, work, progress)
                part = staging.part / folder.relative_to(model.root)
                like = likes.get(name)
                chosen = (
                    chosen_by(run.plan, recipes[name])
                    if like is None
                    else like.chosen(run.surveyed.groups)
                )
                write = partial(_write, model, name, run, saved, chosen, part)
                write(copied.get(name, {}), progress)
                shutil.rmtree(work)
            card.write(staging.part, base_model=model.hub_id)
        check_unchanged(model, weights, identity)
        parts = {n: staging.part / f.relative_to(model.root) for n, f in model.denoisers.items()}
        return {
            name: outcome_from(read_manifest(part), recipes[name], name)
            for name, part in parts.items()
        }


def plan_folder(
    model: ModelFolder, calls_of: CallsOf, recipes: Mapping[str, ShrinkRecipe],
    placement: Placement, progress: Progress,
) -> dict[str, ShrinkPlan]:  # fmt: skip
    """What could go from every denoiser, and at which cost; nothing is written."""
    plans: dict[str, ShrinkPlan] = {}
    for name, folder in model.denoisers.items():
        with TemporaryDirectory() as work:
            calls = _calls_for(name, calls_of)
            run, _ = _run(folder, calls, recipes[name], placement, Path(work), progress)
            plans[name] = run.plan
    return plans


def _calls_for(name: str, calls_of: CallsOf) -> list[Call]:
    calls = list(calls_of(name))
    if not calls:
        raise RecipeError(
            f"{name}: no calibration calls of it; sample them from this model (--calibration-set)"
        )
    return calls


def _settings(
    calls: Mapping[str, Sequence[Call]], recipes: Mapping[str, ShrinkRecipe], placement: Placement,
    likes: Mapping[str, Like],
) -> dict[str, Any]:  # fmt: skip
    """What makes a run this one, beside the model's files."""
    digest = hashlib.sha256()
    for name, given in calls.items():
        digest.update(name.encode())
        for call in given:
            for leaf in call.leaves():
                is_tensor = isinstance(leaf, Tensor)
                digest.update(_raw(leaf) if is_tensor else repr(leaf).encode())
    return {
        "shrink": {name: recipe.to_json() for name, recipe in recipes.items()},
        "calls": digest.hexdigest(),
        "device": placement.device,
        "dtype": str(placement.dtype),
        "like": {
            name: [like.record["groups"], like.record["ranks"]] for name, like in likes.items()
        },
    }


def _raw(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def _run(
    folder: Path, calls: Sequence[Call], recipe: ShrinkRecipe, placement: Placement, work: Path,
    progress: Progress,
) -> tuple[ShrinkRun, WorkInFolder]:  # fmt: skip
    """The work on one denoiser, and where it is saved."""
    saved = WorkInFolder(work)
    moved = [to_placement(call, placement.device, placement.dtype) for call in calls]
    ground = _ground(folder, moved, recipe, placement, work)
    return ShrinkRun(ground, moved, recipe, saved, progress), saved


def _ground(
    folder: Path, calls: Sequence[Call], recipe: ShrinkRecipe, placement: Placement, work: Path
) -> Terrain:
    """One block at a time where they chain; else the denoiser is loaded whole."""
    weights = Weights(folder)
    names = weights.entries.keys()
    sizes = {n: e.size_bytes // max(1, prod(e.shape)) for n, e in weights.entries.items()}
    blocks = block_paths(skeleton(folder), recipe)
    disk = OnDisk(folder, blocks, placement)
    chain = find_chain(disk.denoiser, blocks, calls, disk)
    if not isinstance(chain, Chain):
        denoiser = load_denoiser(folder, placement)
        return Terrain(
            denoiser, InMemory(denoiser), None, weights.read, names, sizes, MAX_MOMENT_BYTES
        )
    left = _left_bytes(weights, blocks, placement)
    make, every = place_states(chain, calls, disk, work, placement.device, left, True)
    road = Road(chain, disk, make, every)
    return Terrain(disk.denoiser, disk, road, weights.read, names, sizes, MAX_MOMENT_BYTES)


def _left_bytes(weights: Weights, blocks: Sequence[str], placement: Placement) -> int | None:
    """Memory for hidden states and gradients; None without a limit."""
    if placement.max_memory is None:
        return None
    sizes = dict.fromkeys(("", *blocks), 0)
    for name, entry in weights.entries.items():
        block = next((path for path in blocks if name.startswith(f"{path}.")), "")
        sizes[block] += torch.Size(entry.shape).numel() * placement.dtype.itemsize
    rest = sizes.pop("")
    return placement.max_memory - rest - _COPIES_OF_BLOCK * max(sizes.values())


def _write(
    model: ModelFolder, name: str, run: ShrinkRun, saved: WorkInFolder, chosen: CutChoice,
    part: Path, copied: Mapping[str, str], progress: Progress,
) -> None:  # fmt: skip
    """Write a denoiser's smaller tensors, its config and its manifest."""
    folder = model.denoisers[name]
    weights, prices, cut = Weights(folder), run.surveyed.prices, chosen.cut
    run.carry_out(chosen)
    works = run.works()
    ranks = {layer: values for work in works for layer, values in work.ranks.items()}
    lowered = {layer: Lowered(int(values[0]), values[3]) for layer, values in ranks.items()}
    went = Went(cut, chosen.errors, run.surveyed.whole, {}, lowered)
    new = saved.entries()
    layout = smaller_layout(weights, new, {n for work in works for n in work.gone})
    hashes = write_tensors(weights, new, layout, part, progress)
    tree = skeleton(folder)
    write_form(part, went.form(tree))
    print_of = combined_fingerprint(folder_fingerprints(folder, run.recipe.blocks))
    shapes = {entry.name: entry.shape for entry in weights.in_order()}
    base = base_before(base_of(model, folder, weights, print_of), tree, shapes, went)
    smaller, after = Weights(part), prices.size(cut).num_macs
    after += sum(_macs_of_rank(prices, layer, values) for layer, values in ranks.items())
    claims = shrunk_claims(
        went, run.recipe.to_json(), base, size_of(folder, weights, prices.size().num_macs),
        size_of(part, smaller, after), hashes, smaller.header_hashes(), copied,
        ratio=chosen.ratio, error=chosen.error,
        error_of_free_choice=chosen.error_of_free_choice,
        notes=[*chosen.notes, *run.notes()],
    )  # fmt: skip
    write_manifest(part, claims)


def _macs_of_rank(prices: Prices, layer: str, values: Sequence[float]) -> int:
    """How many multiplications more a layer takes as two; fewer are below zero."""
    uses = prices.uses.get(f"{layer}.weight", 0)
    return uses * int(values[1] - values[2])
