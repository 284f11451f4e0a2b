"""How much memory and disk does updating block by block take, and where do hidden states fit?"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from functools import partial
from math import ceil
from pathlib import Path

import psutil
import torch

from ditprune.calls import Call
from ditprune.checkpoints.weights import Weights
from ditprune.denoiser.blockwise.chain import Chain
from ditprune.denoiser.blockwise.residence import Residence
from ditprune.denoiser.blockwise.states import States, StatesOnDisk, tree_bytes
from ditprune.denoiser.blockwise.sweep import Make
from ditprune.denoiser.layout import form_of
from ditprune.denoiser.replay import run_call
from ditprune.denoiser.rows import num_rows
from ditprune.errors import RecipeError
from ditprune.reporting import formats
from ditprune.targets.discover import Target

_FLOAT, _FLAG = 4, 1
_WEIGHT_COPIES, _GRAM_COPIES = 10, 6  # while a reconstruction solves a layer


def blockwise_bytes(
    weights: Weights, blocks: Sequence[str], targets: Mapping[str, Target], itemsize: int
) -> int:
    """Of weights, results and the work on a layer, without Grams, hidden states and activations.

    Args:
        itemsize: bytes of a weight of the denoiser, as it is loaded.
    """
    sizes = dict.fromkeys(blocks, 0)
    rest, owner = 0, {name: target.block for name, target in targets.items()}
    for name, entry in weights.entries.items():
        size = torch.Size(entry.shape).numel() * itemsize
        block = next((path for path in blocks if name.startswith(f"{path}.")), None)
        if block is None:
            rest += size
        else:
            sizes[block] += size
    results = dict.fromkeys(blocks, 0)
    for name, target in targets.items():
        results[owner[name]] = results.get(owner[name], 0) + (_FLOAT + _FLAG) * target.num_weights
    work = max(map(work_bytes, targets.values()))
    return rest + max(sizes.values()) + max(results.values()) + work


def work_bytes(target: Target) -> int:
    """Of the work on a layer, beside its weight and its Gram."""
    copies = _WEIGHT_COPIES * target.num_weights + _GRAM_COPIES * target.shape[1] ** 2
    return _FLOAT * copies


def state_bytes(chain: Chain, calls: Sequence[Call], residence: Residence) -> int:
    """What the block that gives most gives in all calls."""
    most: dict[object, float] = {}

    def hook(_module: object, _args: object, output: object) -> None:
        sizes.append(tree_bytes([output]))

    for call in calls:
        if form_of(call) in most:
            continue
        sizes: list[int] = []
        handles = [
            chain.denoiser.get_submodule(path).register_forward_hook(hook) for path in chain.blocks
        ]
        try:
            with residence.running():
                run_call(chain.denoiser, call)
        finally:
            for handle in handles:
                handle.remove()
        most[form_of(call)] = max(sizes) / num_rows(call)
    return int(sum(most[form_of(call)] * num_rows(call) for call in calls))


def place_states(
    chain: Chain, calls: Sequence[Call], residence: Residence, folder: Path,
    device: str | torch.device, left_bytes: int | None, goes_back: bool,
    refine_calls: Sequence[Call] = (),
) -> tuple[Make, int]:  # fmt: skip
    """Places for hidden states: in memory where they fit, else in files of `folder`; and of how
    many blocks those of one are kept for the way back: of all where there is room.

    Args:
        left_bytes: what they and gradients may take in memory; None is half of what is free.
        goes_back: whether gradients are taken, for which those of all blocks are kept.

    Raises RecipeError where there is no room, in memory for gradients or on the disk for states.
    """
    one_bytes = state_bytes(chain, calls, residence)
    live = [len(chain.live(number)) for number in range(len(chain.blocks))]
    states_bytes = one_bytes * (sum(live) + 1 if goes_back else 2 * max(live))
    refined_bytes = 0
    if refine_calls:  # of dense and of pruned blocks, before and after a block, beside the Grams'
        refined_bytes = 4 * max(live) * state_bytes(chain, refine_calls, residence)
        refined_bytes += 2 * max(live) * one_bytes
    states_bytes = max(states_bytes, refined_bytes)
    every, fewest_bytes = 1, states_bytes
    gradient_bytes = one_bytes * max(live) if goes_back else 0
    left = psutil.virtual_memory().available // 2 if left_bytes is None else left_bytes
    if left_bytes is not None and gradient_bytes > left:
        raise RecipeError(
            f"--max-memory: gradients of the {sum(map(num_rows, calls))} rows that this recipe "
            f"takes need {formats.size(gradient_bytes)} beside the weights, and "
            f"{formats.size(max(0, left))} are left; allow more, or give fewer calls "
            "(--calibration-set)"
        )
    if states_bytes + gradient_bytes <= left:
        return partial(States, device=device), every
    free = shutil.disk_usage(folder).free
    while goes_back and fewest_bytes > free and every**2 < len(live):
        every += 1
        traced_bytes = one_bytes * max(live) * (ceil(len(live) / every) + every + 1)
        fewest_bytes = max(traced_bytes, refined_bytes)
    if fewest_bytes > free:
        raise RecipeError(
            f"{folder}: what the blocks give for the {sum(map(num_rows, calls))} rows of "
            f"calibration that this recipe takes needs {formats.size(fewest_bytes)}, and the disk "
            f"has {formats.size(free)} free; free some, allow more memory (--max-memory), pass "
            "--dtype bfloat16, or give fewer calls (--calibration-set)"
        )
    return (lambda count: StatesOnDisk(count, device, folder)), every
