"""Claim: a denoiser with fewer heads and neurons is faster with any library: here torch, OpenVINO.

    python bench/peers.py [--ratio 0.3 0.5] [--rounds 5]

A DiT-XL/2-shaped denoiser with random weights at 256², batch 2, float32: dense, and without so
large a share of the multiplications of its attention and MLP, the same in every block, neurons in
the multiples that `shrink` takes. Each library's own dense model is timed in turn with the smaller
ones, in one run; medians are shown. OpenVINO's rows appear where it is installed.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import os
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from ditprune.calls import Call
from ditprune.shrinking.find import find_groups
from ditprune.shrinking.in_place import cut_
from ditprune.shrinking.plan import supply_of
from ditprune.shrinking.prices import Prices
from ditprune.shrinking.recipe import ShrinkRecipe
from ditprune.shrinking.survey import block_paths
from ditprune.shrinking.units import Cut

CONFIG = {
    "num_attention_heads": 16, "attention_head_dim": 72, "in_channels": 4, "out_channels": 8,
    "num_layers": 28, "sample_size": 32, "patch_size": 2, "num_embeds_ada_norm": 1000,
    "norm_type": "ada_norm_zero", "activation_fn": "gelu-approximate",
    "norm_elementwise_affine": False,
}  # fmt: skip


def call() -> dict[str, Tensor]:
    return {
        "hidden_states": torch.randn(2, 4, 32, 32),
        "timestep": torch.tensor([500, 500]),
        "class_labels": torch.tensor([3, 1000]),
    }


def smaller(dense: nn.Module, ratio: float) -> tuple[nn.Module, float]:
    """A copy without the last units of every group, and the share that its multiplications are."""
    recipe = ShrinkRecipe(ratio=ratio)
    groups, _ = find_groups(dense, block_paths(dense, recipe))
    prices = Prices.of(dense, Call((), call()))
    stay: dict[str, list[int]] = {}
    for name, group in groups.items():
        batch = supply_of(group, prices, recipe).batch
        count = max(batch, round((1 - ratio) * group.num_units / batch) * batch)
        stay[name] = list(range(count))
    cut = Cut(groups, stay)
    denoiser = copy.deepcopy(dense)
    cut_(denoiser, cut)
    return denoiser.requires_grad_(False), prices.size(cut).num_macs / prices.size().num_macs


def in_torch(denoiser: nn.Module) -> Callable[[], object]:
    given = call()

    @torch.no_grad()
    def run() -> object:
        return denoiser(**given, return_dict=False)

    return run


def in_openvino(denoiser: nn.Module) -> Callable[[], object]:
    import openvino  # type: ignore[import-not-found]

    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.denoiser = denoiser

        def forward(self, sample: Tensor, timestep: Tensor, labels: Tensor) -> Any:
            return self.denoiser(sample, timestep, labels, return_dict=False)[0]

    given = call()
    example = tuple(given.values())
    model = openvino.convert_model(Plain(), example_input=example)
    options = {"INFERENCE_NUM_THREADS": torch.get_num_threads(), "INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.compile_model(model, "CPU", options)
    return lambda: compiled([value.numpy() for value in example])


def seconds(works: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Of each, in turn."""
    times: dict[str, list[float]] = {name: [] for name in works}
    for work in works.values():
        work()
    for _ in range(rounds):
        for name, work in works.items():
            start = time.perf_counter()
            work()
            times[name].append(time.perf_counter() - start)
    return {name: median(each) for name, each in times.items()}


def main() -> None:
    from diffusers import DiTTransformer2DModel

    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--ratio", nargs="+", type=float, default=[0.3, 0.5])
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    torch.manual_seed(0)
    dense = DiTTransformer2DModel(**CONFIG).eval().requires_grad_(False)
    models = {"dense": (dense, 1.0), **{f"{r:.0%} less": smaller(dense, r) for r in args.ratio}}
    libraries = {"torch": in_torch}
    if importlib.util.find_spec("openvino"):
        libraries["OpenVINO"] = in_openvino
    table = Table("library", "model", "multiplications", "s", "times as fast", box=None)
    for library, load in libraries.items():
        taken = seconds({name: load(model) for name, (model, _) in models.items()}, args.rounds)
        for name, (_, share) in models.items():
            gain = taken["dense"] / taken[name]
            table.add_row(library, name, f"{share:.2f}", f"{taken[name]:.2f}", f"{gain:.2f}")
    Console(highlight=False, width=100).print(table)
    print(
        f"{torch.get_num_threads()} threads with {torch.backends.cpu.get_cpu_capability()}, torch "
        f"{torch.__version__}, medians of {args.rounds}; load average {os.getloadavg()[0]:.1f}"
    )


if __name__ == "__main__":
    main()
