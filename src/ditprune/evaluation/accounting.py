"""What does a model cost? Parameters and bytes on disk, multiply-accumulates (MACs) of an image."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ditprune.calls import Call
from ditprune.checkpoints.compact.compact_folder import open_weights
from ditprune.denoiser.capture import counting_tokens
from ditprune.denoiser.placement import Placement
from ditprune.denoiser.replay import run_call
from ditprune.denoiser.rows import num_rows, take_item, to_placement
from ditprune.evaluation.in_memory import AnyModel


@dataclass(frozen=True)
class Stock:
    """The weights of a model.

    Args:
        size_bytes: what its files take, with their headers; in memory what its tensors take.
        zeros: (zeros, weights) of each target, by denoiser.
    """

    num_parameters: int
    num_nonzero: int
    size_bytes: int
    zeros: Mapping[str, Mapping[str, tuple[int, int]]]

    @property
    def sparsity(self) -> float:
        """The share of zeros in the targets."""
        counts = [count for targets in self.zeros.values() for count in targets.values()]
        return sum(zeros for zeros, _ in counts) / sum(weights for _, weights in counts)

    def shares(self, denoiser: str) -> dict[str, float]:
        """The share of zeros of each target of a denoiser."""
        return {name: zeros / weights for name, (zeros, weights) in self.zeros[denoiser].items()}


def take_stock(model: AnyModel, targets: Mapping[str, Iterable[str]]) -> Stock:
    """Count a model's weights on disk or in memory, tensor by tensor.

    Args:
        targets: names by denoiser.
    """
    num_parameters = num_nonzero = size_bytes = 0
    zeros: dict[str, dict[str, tuple[int, int]]] = {}
    for component, source in model.denoisers.items():
        tensors, stored_bytes = (
            _in_module(source) if isinstance(source, nn.Module) else _on_disk(source)
        )
        target_of = {f"{name}.weight": name for name in targets[component]}
        size_bytes += stored_bytes
        zeros[component] = {}
        for name, tensor in tensors:
            nonzero = int(torch.count_nonzero(tensor))
            num_parameters += tensor.numel()
            num_nonzero += nonzero
            if name in target_of:
                zeros[component][target_of[name]] = (tensor.numel() - nonzero, tensor.numel())
    return Stock(num_parameters, num_nonzero, size_bytes, zeros)


def _on_disk(folder: Path) -> tuple[Iterator[tuple[str, Tensor]], int]:
    """The tensors of a folder, read one after the other, and what its shards take."""
    weights = open_weights(folder)
    names = (entry.name for entry in weights.in_order())
    return ((name, weights.read(name)) for name in names), weights.stored_bytes


def _in_module(module: nn.Module) -> tuple[Iterator[tuple[str, Tensor]], int]:
    """The tensors that save_pretrained would write, shared ones once, and what they take."""
    state: dict[int, tuple[str, Tensor]] = {}
    for name, tensor in module.state_dict(keep_vars=True).items():
        state.setdefault(id(tensor), (name, tensor.detach()))
    size_bytes = sum(tensor.numel() * tensor.element_size() for _, tensor in state.values())
    return iter(state.values()), size_bytes


@dataclass(frozen=True)
class Macs:
    """The multiply-accumulates of one denoiser call.

    Args:
        total: of matrix products, convolutions and attention.
        targets: the part of each target.
    """

    total: int
    targets: Mapping[str, int]

    def effective(self, zeros: Mapping[str, float]) -> float:
        """Without the products by zero weights, given each target's share of zeros."""
        return self.total - sum(self.targets[name] * zeros.get(name, 0.0) for name in self.targets)


def count_macs(denoiser: nn.Module, call: Call, targets: Iterable[str]) -> Macs:
    """Run one call and count; on the meta device it takes no time and no memory.

    A multiplication and its addition count as one, as in the papers on DiT and PixArt, which call
    them flops. Normalisations, activations and embeddings do not count.
    """
    layers = {name: denoiser.get_submodule(name) for name in targets}
    counter = FlopCounterMode(display=False)
    # The counter does not know the CPU's fused attention; the plain one consists of products.
    plain = sdpa_kernel(SDPBackend.MATH)
    with counting_tokens(layers) as num_tokens, counter, plain, torch.no_grad():
        run_call(denoiser, call)
    target_macs = {
        name: sum(num_tokens[name]) * layer.get_parameter("weight").numel()
        for name, layer in layers.items()
    }
    return Macs(counter.get_total_flops() // 2, target_macs)


@dataclass(frozen=True)
class Work:
    """The multiply-accumulates of one image.

    Args:
        num_steps: denoising steps.
        calls: by denoiser, how many calls of one row an image takes, and the MACs of one.
    """

    num_steps: int
    calls: Mapping[str, tuple[float, Macs]]

    def per_image(self, stock: Stock | None = None) -> float:
        """All products, or only those by weights that are not zero."""
        return sum(
            number * (macs.total if stock is None else macs.effective(stock.shares(name)))
            for name, (number, macs) in self.calls.items()
        )


def count_work(
    denoisers: Mapping[str, nn.Module], held_out: Mapping[str, Sequence[Call]],
    targets: Mapping[str, Iterable[str]], placement: Placement,
) -> dict[str, tuple[int, Macs]]:  # fmt: skip
    """For each denoiser, the number of rows in its held-out calls, and the MACs of one row."""
    counted = {}
    for name, calls in held_out.items():
        row = take_item(calls[0], 0, num_rows(calls[0]))
        moved = to_placement(row, placement.device, placement.dtype)
        macs = count_macs(denoisers[name], moved, targets[name])
        counted[name] = (sum(map(num_rows, calls)), macs)
    return counted


def work_of(
    counted: Sequence[Mapping[str, tuple[int, Macs]]], rows_per_step: float, num_steps: int
) -> Work:
    """The work of one image, from what each worker counted.

    Held-out calls are spread evenly over the steps, so their numbers tell which share of the steps
    each denoiser takes.

    Args:
        rows_per_step: rows of all calls of one image at one step; 2 with guidance.
    """
    rows, macs = Counter[str](), dict[str, Macs]()
    for worker in counted:
        for name, (number, row_macs) in worker.items():
            rows[name] += number
            macs.setdefault(name, row_macs)
    rows_per_image = num_steps * rows_per_step
    calls = {name: (rows_per_image * rows[name] / rows.total(), macs[name]) for name in rows}
    return Work(num_steps, calls)


def account(
    stock: Stock, work: Work | None, seconds_per_image: float | None,
    peak_memory_bytes: int | None = None,
) -> dict[str, Any]:  # fmt: skip
    """The `accounting` of results.json; None for what was not counted."""
    macs: list[int | None] = [None] * 4
    if work is not None:
        dense, effective = work.per_image(), work.per_image(stock)
        per_step = dense / work.num_steps, effective / work.num_steps
        macs = [round(number) for number in (*per_step, dense, effective)]
    names = ("macs_per_step", "macs_per_step_effective", "macs_per_image")
    return {
        "num_parameters": stock.num_parameters,
        "num_nonzero": stock.num_nonzero,
        "size_bytes": stock.size_bytes,
        **dict(zip((*names, "macs_per_image_effective"), macs, strict=True)),
        "seconds_per_image": seconds_per_image,
        "peak_memory_bytes": peak_memory_bytes,
    }
