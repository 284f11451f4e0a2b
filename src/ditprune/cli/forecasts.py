"""How is what updating weights will take printed: time by stage, memory and disk?"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

from rich.table import Table

from ditprune.calls import Call
from ditprune.checkpoints.locate import ModelFolder
from ditprune.checkpoints.skeleton import skeleton
from ditprune.cli import console
from ditprune.denoiser.rows import num_rows
from ditprune.errors import ModelError
from ditprune.method.recipe import Recipe
from ditprune.pruning.forecast import forecast_updates
from ditprune.pruning.forecast_blocks import (
    BlockForecast,
    Setting,
    forecast_blocks,
)
from ditprune.pruning.job import Job
from ditprune.pruning.rates import (
    SHARE_OF_FACTORS,
    SHARE_OF_UPDATES,
    Rates,
    measured_rates,
    stated_rates,
)
from ditprune.pruning.row_cost import RowCost, row_cost
from ditprune.pruning.update.blockwise.way import streams
from ditprune.pruning.update.folder import Source, calls_of
from ditprune.pruning.update.prepared import DEFAULT_GRAM_BYTES
from ditprune.reporting import formats

_GPU_SIZES = (24_000_000_000, 80_000_000_000)
_ALL = "in all"


@dataclass(frozen=True)
class _Machines:
    """The device that was asked for, measured, and a GPU of a stated rate."""

    device: str
    here: Rates
    tflops: float

    @property
    def told(self) -> str:
        """In a word or two, the measured one."""
        return "this CPU" if self.device == "cpu" else f"this {self.device}"

    @property
    def gpu(self) -> Rates:
        return stated_rates(self.tflops)


def show_update_forecast(
    model: ModelFolder, job: Job, source: Source, prefix: str, gpu_rate: float
) -> None:
    """What weight updates take, on the device that was asked for and on a GPU of a rate."""
    setting, first = _setting_of(job, source)
    if first is None:  # of a denoiser whose recipe needs none
        return
    try:
        row = row_cost(skeleton(model.denoisers[job.name]), job.selection.targets, first)
    except ModelError as error:
        console.show([str(error)], prefix)
        return
    placement = source.placement
    here = measured_rates(placement.device, placement.dtype)
    machines = _Machines(placement.device, here, gpu_rate)
    show = _show_by_blocks if streams(job.recipe) else _show_whole
    show(job, row, setting, machines, prefix)


def _setting_of(job: Job, source: Source) -> tuple[Setting, Call | None]:
    first: Call | None = None
    total = largest = 0
    for call in calls_of(job, source):
        rows = num_rows(call)
        first, total, largest = first or call, total + rows, max(largest, rows)
    most = source.max_gram_bytes or DEFAULT_GRAM_BYTES
    itemsize = source.placement.dtype.itemsize
    return Setting(total, largest, job.selection.num_parameters, itemsize, most), first


def _show_by_blocks(
    job: Job, row: RowCost, setting: Setting, machines: _Machines, prefix: str
) -> None:
    expected = forecast_blocks(job.selection.targets, job.recipe, row, setting)
    lines = [
        f"before that it updates weights block by block, where its blocks chain, from "
        f"{setting.num_rows:,} rows of calls"
    ]
    if expected.trace_bytes:
        lines.append(
            "  how the output follows each layer is measured on the way back through the blocks, "
            f"once, on {expected.num_rows:,} rows"
        )
    console.show(lines, prefix)
    _show_times(expected.seconds, machines)
    console.show(memory_lines(expected), prefix)


def _show_whole(job: Job, row: RowCost, setting: Setting, machines: _Machines, prefix: str) -> None:
    targets, recipe = job.selection.targets, job.recipe
    rest = (
        row, setting.num_rows, setting.num_parameters, setting.max_gram_bytes, setting.itemsize,
    )  # fmt: skip
    expected = forecast_updates(targets, recipe, *rest)
    console.show(
        [
            f"before that it updates the weights of the loaded denoiser, from "
            f"{setting.num_rows:,} rows of calls; Grams take {expected.num_passes} passes over them"
        ],
        prefix,
    )
    _show_times(expected.seconds, machines)
    size = formats.size(expected.peak_bytes)
    lines = [f"  memory: about {size} and the activations of a batch"]
    for words, other in _cheaper(recipe).items():
        less = forecast_updates(targets, other, *rest)
        time_s = sum(less.seconds(machines.gpu).values())
        lines.append(
            f"  with {words}: {formats.size(less.peak_bytes)}, {formats.duration(time_s)} on such "
            "a GPU"
        )
    console.show(lines, prefix)


def _cheaper(recipe: Recipe) -> dict[str, Recipe]:
    """Faster recipes, by the flags that ask for them."""
    cheaper = {}
    if recipe.allocation == "sensitivity":
        recipe = replace(recipe, allocation="proxy")
        cheaper["--allocation proxy"] = recipe
    if recipe.refinement is not None:
        mask = "reconstruction" if recipe.mask == "refinement" else recipe.mask
        flags = [*cheaper, f"--refinement none --mask {mask}"]
        cheaper[" ".join(flags)] = replace(recipe, refinement=None, mask=mask)
    return cheaper


def _show_times(seconds: Callable[[Rates], Mapping[str, float]], machines: _Machines) -> None:
    here, gpu = seconds(machines.here), seconds(machines.gpu)
    table = Table("stage", machines.told, "a GPU", box=None, pad_edge=False)
    for column in (1, 2):
        table.columns[column].justify = "right"
    for name in here:
        table.add_row(name, formats.duration(here[name]), formats.duration(gpu[name]))
    totals = (formats.duration(sum(times.values())) for times in (here, gpu))
    table.add_row(_ALL, *totals)
    console.show_table(table)
    rates = machines.here
    parts = {
        "forward passes": rates.forwards, "products": rates.products,
        "reconstructions": rates.updates, "factors": rates.factors,
    }  # fmt: skip
    told = ", ".join(f"{name} {rate / 1e12:.3g}" for name, rate in parts.items())
    console.show(
        [
            f"  {machines.told}, measured, in TFLOP/s: {told}",
            f"  a GPU: {machines.tflops:g} TFLOP/s, stated (--gpu-rate); reconstructions at "
            f"{formats.percent(SHARE_OF_UPDATES)} of it, factors at "
            f"{formats.percent(SHARE_OF_FACTORS)}",
        ]
    )


def memory_lines(expected: BlockForecast) -> Iterator[str]:
    """What updating block by block holds on the device, in main memory and on the disk."""
    phase = max(expected.device_bytes, key=lambda phase: expected.device_bytes[phase])
    most = expected.device_bytes[phase]
    fits = (
        f"{formats.size(size)} {'are enough' if most <= size else 'are too few'}"
        for size in _GPU_SIZES
    )
    yield (
        f"  memory of the device: about {formats.size(most)}, while a block {phase}; on a GPU "
        f"{' and '.join(fits)}"
    )
    yield f"  main memory: {formats.size(expected.states_bytes)} of hidden states of two blocks"
    if expected.trace_bytes:
        yield (
            f"  memory or disk: {formats.size(expected.trace_bytes)} of hidden states of all "
            f"blocks, for the way back; {formats.size(expected.least_trace_bytes)} at least, with "
            "one forward pass more"
        )
