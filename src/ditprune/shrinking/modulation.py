"""How does the modulation of blocks lose rank? Linears of timestep and condition become two each.

What they get does not depend on the latents, and is the same from block to block in most models. So
a forward stops at the first of them, and thousands of pairs of timestep and condition are cheap.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from ditprune.calls import Call
from ditprune.checkpoints.shrunk.low_rank import Factors, LowRank, set_low_rank_
from ditprune.denoiser.blockwise.chain import Chain
from ditprune.denoiser.layout import RowLayout
from ditprune.errors import RecipeError, TargetError
from ditprune.method.low_rank import LowRankFit, RankProblem, rank_at
from ditprune.shrinking.modulation_inputs import ModulationInputs, ModulationSource
from ditprune.shrinking.pairs import NUM_PAIRS
from ditprune.targets.blocks import find_blocks
from ditprune.targets.coverage import prunable
from ditprune.targets.discover import role_of
from ditprune.targets.lists import join
from ditprune.targets.writable import refuse_without_values, tied

AUTO, NONE = "auto", "none"
Wanted = float | str | Mapping[str, int]  # of each layer, its rank; the others stay


def checked_modulation(value: Any) -> float | str:
    """`auto`, `none` or a share of the weights. Raises RecipeError."""
    if isinstance(value, str) and value in (AUTO, NONE):
        return value
    try:
        share = float(value)
    except (TypeError, ValueError):
        share = -1.0
    if isinstance(value, bool) or not 0 <= share < 1:
        raise RecipeError(
            f"--modulation {value!r:.60}: expected auto, none, or the share of its weights that "
            "goes, from 0 to below 1"
        )
    return share if share else NONE


def modulation_layers(denoiser: nn.Module, blocks: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """By block, the Linears that modulate it, by their names; works on the meta device."""
    shared = tied(denoiser, find_blocks(denoiser, blocks))
    return {path: tuple(_layers_in(denoiser.get_submodule(path), path, shared)) for path in blocks}


def _layers_in(block: nn.Module, path: str, shared: Mapping[int, str]) -> Iterator[str]:
    low = {name for name, layer in block.named_modules() if isinstance(layer, LowRank)}
    plain = {name for name, _, kind in prunable(block, shared) if kind == "linear"}
    for name, layer in block.named_modules():
        is_plain = name in plain and type(layer) is nn.Linear and name.rpartition(".")[0] not in low
        if (is_plain or name in low) and role_of(name) == "modulation":
            yield join(path, name)


def why_none(denoiser: nn.Module, layers: Mapping[str, Sequence[str]]) -> str | None:
    """Why there is nothing to do for a denoiser; None where there is."""
    if any(layers.values()):
        return None
    return (
        f"{type(denoiser).__name__}: no layer of its blocks is modulation; where it has any, it "
        "is computed once for all blocks, outside them, and small"
    )


def ranks_at(denoiser: nn.Module, names: Sequence[str], share: float) -> dict[str, int]:
    """The rank of each layer with this share of its weights gone; 0 where none is left.

    Raises RecipeError where none is left in any.
    """
    ranks, most = {}, 0.0
    for name in names:
        layer: Any = denoiser.get_submodule(name)
        size = layer.out_features + layer.in_features
        ranks[name] = rank_at(share, _num_weights(layer), layer.out_features, layer.in_features)
        most = max(most, 1 - size / _num_weights(layer))
    if names and not any(ranks.values()):
        raise RecipeError(
            f"--modulation {share:g}: leaves no rank in any of {len(names)} layers, first "
            f"{names[0]}; expected at most {most:.4f}"
        )
    return ranks


@dataclass(frozen=True, eq=False)
class BlockModulation:
    """What becomes of the modulation of a block.

    Args:
        fits: by layer that becomes two.
        whole: by layer that stays as it is, why.
    """

    fits: Mapping[str, LowRankFit]
    whole: Mapping[str, str]


class ModulationFitter:
    """Takes the blocks of a denoiser one after another.

    Args:
        blocks: their paths.
        wanted: `auto`, a share, or ranks.
        chain: of the blocks; without it the denoiser runs up to the block.
        layout: takes calls apart and puts them together; without it they are run as they are.

    Raises RecipeError for a share that leaves no rank.
    """

    def __init__(
        self, denoiser: nn.Module, blocks: Sequence[str], calls: Sequence[Call], wanted: Wanted,
        chain: Chain | None = None, layout: RowLayout | None = None, num_pairs: int = NUM_PAIRS,
    ) -> None:  # fmt: skip
        self.layers = modulation_layers(denoiser, blocks)
        self._denoiser, self._wanted, self._chain = denoiser, wanted, chain
        if isinstance(wanted, float):
            ranks_at(denoiser, [n for names in self.layers.values() for n in names], wanted)
        self._inputs = ModulationInputs(denoiser, calls, chain, layout, num_pairs)

    def fit(self, block: str) -> BlockModulation:
        """The Linears of a block. Raises ModelError where their weights are not there, TargetError
        for NaN or Inf.
        """
        names = [name for name in self.layers[block] if self._may_go(name)]
        if not names:
            return BlockModulation({}, {})
        refuse_without_values(self._denoiser, names)
        sources, whole = self._inputs.of_block(block, names)
        fits: dict[str, LowRankFit] = {}
        for name, source in sources.items():
            fit = self._fit(name, source)
            if isinstance(fit, LowRankFit):
                fits[name] = fit
            else:
                whole[name] = fit
        return BlockModulation(fits, whole)

    def _may_go(self, name: str) -> bool:
        return not isinstance(self._wanted, Mapping) or name in self._wanted

    def _fit(self, name: str, source: ModulationSource) -> LowRankFit | str:
        """Two matrices for a layer, or why it stays as it is."""
        layer: Any = self._denoiser.get_submodule(name)
        weight = layer.weight.detach()
        bias = None if layer.bias is None else layer.bias.detach()
        if not (weight.isfinite().all() and (bias is None or bias.isfinite().all())):
            raise TargetError(f"{name}: NaN or Inf in its weight or bias; load a sound checkpoint")
        num_weights = _num_weights(layer)
        problem = RankProblem(weight, bias, source.spread, source.aside, num_weights, weight.dtype)
        if isinstance(self._wanted, Mapping):
            return problem.at_rank(self._wanted[name])
        if isinstance(self._wanted, float):
            if not rank_at(self._wanted, num_weights, len(weight), weight.shape[1]):
                return f"{self._wanted:g} of its weights less leave no rank"
            return problem.at_share(self._wanted)
        fit = problem.within()
        if isinstance(fit, int):
            return f"it needs a rank of {fit}, and two Linears of that rank are no smaller"
        return fit


def shrink_modulation_(denoiser: nn.Module, fits: Mapping[str, LowRankFit]) -> None:
    """Put two Linears in the place of each layer. Raises ModelError."""
    set_low_rank_(denoiser, {n: Factors(fit.down, fit.up, fit.bias) for n, fit in fits.items()})


def _num_weights(layer: Any) -> int:
    if isinstance(layer, LowRank):
        return layer.num_weights
    return layer.in_features * layer.out_features
