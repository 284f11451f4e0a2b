"""What a model costs: parameters, bytes, multiply-accumulates, and seconds where measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ditprune.calls import Call
from ditprune.checkpoints.compact.compact_folder import open_weights
from ditprune.checkpoints.locate import ModelFolder
from ditprune.denoiser.placement import Placement
from ditprune.denoiser.rows import num_rows, take_item, to_placement
from ditprune.evaluation.macs import Macs, count_macs


@dataclass(frozen=True)
class Stock:
    """What lies on the disk.

    Args:
        zeros: (zeros, weights) of each target, by denoiser.
    """

    num_parameters: int
    num_nonzero: int
    size_bytes: int
    zeros: Mapping[str, Mapping[str, tuple[int, int]]]

    @property
    def sparsity(self) -> float:
        """The share of zeros in the targets."""
        counts = [count for one in self.zeros.values() for count in one.values()]
        return sum(zero for zero, _ in counts) / sum(all_ for _, all_ in counts)

    def shares(self, denoiser: str) -> dict[str, float]:
        """The share of zeros of each target of a denoiser."""
        return {name: zero / all_ for name, (zero, all_) in self.zeros[denoiser].items()}


def take_stock(model: ModelFolder, targets: Mapping[str, Sequence[str]]) -> Stock:
    """Count a model's weights on disk, tensor by tensor."""
    num_parameters = num_nonzero = size_bytes = 0
    zeros: dict[str, dict[str, tuple[int, int]]] = {}
    for component, folder in model.denoisers.items():
        weights = open_weights(folder)
        own = {f"{name}.weight": name for name in targets[component]}
        size_bytes += weights.stored_bytes
        zeros[component] = {}
        for entry in weights.in_order():
            tensor = weights.read(entry.name)
            nonzero = int(torch.count_nonzero(tensor))
            num_parameters += tensor.numel()
            num_nonzero += nonzero
            if entry.name in own:
                zeros[component][own[entry.name]] = (tensor.numel() - nonzero, tensor.numel())
    return Stock(num_parameters, num_nonzero, size_bytes, zeros)


@dataclass(frozen=True)
class Work:
    """The products of one image.

    Args:
        num_steps: denoising steps.
        calls: by denoiser, how many calls of one row an image takes, and what one costs.
    """

    num_steps: int
    calls: Mapping[str, tuple[float, Macs]]

    def per_image(self, stock: Stock | None = None) -> float:
        """All products, or those by weights that are not zero."""
        return sum(
            number * (macs.total if stock is None else macs.effective(stock.shares(name)))
            for name, (number, macs) in self.calls.items()
        )


def count_work(
    denoisers: Mapping[str, Any], held_out: Mapping[str, Sequence[Call]],
    targets: Mapping[str, Sequence[str]], place: Placement,
) -> dict[str, tuple[int, Macs]]:  # fmt: skip
    """By denoiser: rows of its held-out calls, and the products of one of these rows."""
    counted = {}
    for name, calls in held_out.items():
        if calls:
            one = take_item(calls[0], 0, num_rows(calls[0]))
            moved = to_placement(one, place.device, place.dtype)
            macs = count_macs(denoisers[name], moved, targets[name])
            counted[name] = (sum(num_rows(call) for call in calls), macs)
    return counted


def work_of(
    counted: Sequence[Mapping[str, tuple[int, Macs]]], rows_per_step: float, num_steps: int
) -> Work:
    """The work of one image from what each worker counted.

    Held-out calls are spread evenly over the way, so their numbers tell how denoisers share it.

    Args:
        rows_per_step: rows of all calls of one image at one step; 2 under guidance.
    """
    rows: dict[str, int] = {}
    macs: dict[str, Macs] = {}
    for one in counted:
        for name, (number, own) in one.items():
            rows[name] = rows.get(name, 0) + number
            macs.setdefault(name, own)
    total = sum(rows.values())
    return Work(
        num_steps,
        {name: (num_steps * rows_per_step * rows[name] / total, macs[name]) for name in rows},
    )


def account(stock: Stock, work: Work | None, seconds_per_image: float | None) -> dict[str, Any]:
    """The `accounting` of results.json."""
    dense = effective = None
    if work is not None:
        dense, effective = work.per_image(), work.per_image(stock)
    return {
        "num_parameters": stock.num_parameters,
        "num_nonzero": stock.num_nonzero,
        "size_bytes": stock.size_bytes,
        "macs_per_step": dense and round(dense / work.num_steps),  # type: ignore[union-attr]
        "macs_per_step_effective": effective and round(effective / work.num_steps),  # type: ignore[union-attr]
        "macs_per_image": dense and round(dense),
        "macs_per_image_effective": effective and round(effective),
        "seconds_per_image": seconds_per_image,
    }
