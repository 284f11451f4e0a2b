"""Which tensors of a denoiser become others, as they are stored?"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from ditprune.denoiser.blockwise.residence import Residence
from ditprune.method.low_rank import LowRankFit
from ditprune.shrinking.kept_work import BlockWork
from ditprune.shrinking.modulation import ModulationFitter
from ditprune.shrinking.moments import Road
from ditprune.shrinking.readers import Fitted
from ditprune.shrinking.units import Cut


@dataclass(frozen=True, eq=False)
class Terrain:
    """A denoiser to be shrunk.

    Args:
        road: through its blocks, where they chain; else it is taken whole, and is in memory.
        read: gives a tensor as it is stored, by its name.
        names: of the tensors that are stored.
        itemsizes: by tensor, bytes of a number as it is stored; none for what is not.
        max_bytes: of moments that are collected together where it is taken whole.
    """

    denoiser: nn.Module
    residence: Residence
    road: Road | None
    read: Callable[[str], Tensor]
    names: Collection[str]
    itemsizes: Mapping[str, int]
    max_bytes: int


def layer_as_stored(terrain: Terrain, name: str) -> tuple[Tensor, Tensor | None]:
    """A layer's weight and bias, on the device that the denoiser runs on."""
    device = next(terrain.denoiser.parameters()).device
    weight, bias = f"{name}.weight", f"{name}.bias"
    has_bias = bias in terrain.names
    return terrain.read(weight).to(device), terrain.read(bias).to(device) if has_bias else None


def smaller_tensors(
    terrain: Terrain, path: str, new: Mapping[str, Fitted], cut: Cut
) -> dict[str, Tensor]:
    """The tensors of a block that change, by name; of the denoiser for no path."""
    tensors: dict[str, Tensor] = {}
    for name, values in new.items():
        shape = terrain.read(f"{name}.weight").shape
        tensors[f"{name}.weight"] = values.weight.reshape(shape).cpu()
        if values.bias is not None:
            tensors[f"{name}.bias"] = values.bias.cpu()
    for name in cut.tensors:
        if (not path or name.startswith(f"{path}.")) and name in terrain.names:
            whole = tensors[name] if name in tensors else terrain.read(name)
            tensors[name] = cut.tensor(name, whole).contiguous()
    return tensors


def with_ranks(
    terrain: Terrain, blocks: Sequence[str], tensors: Mapping[str, Tensor], fitter: ModulationFitter
) -> BlockWork:
    """These tensors, and two in the place of each modulation layer that loses rank."""
    every, gone, notes = dict(tensors), list[str](), list[str]()
    ranks: dict[str, Sequence[float]] = {}
    for block in blocks:
        done = fitter.fit(block)
        notes += [f"{name} keeps its rank: {reason}" for name, reason in done.whole.items()]
        for name, fit in done.fits.items():
            every |= _factors(terrain, name, fit)
            both = (f"{name}.weight", f"{name}.bias")
            gone += [tensor for tensor in both if tensor in terrain.names]
            ranks[name] = (fit.rank, fit.num_weights, fit.num_before, fit.error)
    return BlockWork(every, tuple(gone), ranks, tuple(notes))


def _factors(terrain: Terrain, name: str, fit: LowRankFit) -> dict[str, Tensor]:
    """The two Linears in the place of a layer, in the dtype that it is stored in."""
    is_plain = f"{name}.weight" in terrain.names
    dtype = terrain.read(f"{name}.weight" if is_plain else f"{name}.up.weight").dtype
    parts = {"down.weight": fit.down, "up.weight": fit.up, "up.bias": fit.bias}
    return {
        f"{name}.{part}": tensor.to("cpu", dtype).contiguous() for part, tensor in parts.items()
    }
