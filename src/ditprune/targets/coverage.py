"""What pruning leaves out of a denoiser's blocks, and why: nothing is skipped in silence."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList

from ditprune.targets import prunable
from ditprune.targets.blocks import Block, find_blocks, join
from ditprune.targets.discover import Target
from ditprune.targets.matrix import CONVOLUTIONS, kind_of

AUXILIARY = "blocks outside the trunk (text refiners, perceivers), dense unless asked for"
NOT_CHOSEN = "prunable, and not among the chosen targets"
MIXES = "a convolution that mixes positions or keeps channels apart, not one matrix"
PACKED = "a layer whose weight is packed or computed, not stored as [C_out, C_in]"

_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


@dataclass(frozen=True)
class LeftOut:
    """Matrices inside the blocks that are no targets.

    Args:
        name: the path of a layer, of a whole submodule or block list, or of a raw parameter.
        num_weights: those of its matrices; biases and norms do not count.
        reason: why it stays dense, for a person.
    """

    name: str
    num_weights: int
    reason: str


def left_out(denoiser: nn.Module, targets: Mapping[str, Target]) -> dict[str, LeftOut]:
    """Every parameter with two axes or more inside a block list that is not a target's weight.

    Works on the meta device. A parameter that layers share counts once.
    """
    seen = {id(denoiser.get_parameter(f"{name}.weight")) for name in targets}
    blocks = find_blocks(denoiser)
    chosen = {target.block for target in targets.values()}
    opened = {block.list_path for block in blocks if block.path in chosen}
    found: dict[str, LeftOut] = {}
    for block in blocks:
        if block.auxiliary and block.list_path not in opened:
            parts = [(block.list_path, AUXILIARY, _matrices(block.module))]
        else:
            parts = list(_parts(block))
        for name, reason, matrices in parts:
            own = {id(matrix): matrix.numel() for matrix in matrices if id(matrix) not in seen}
            seen |= own.keys()
            if sum(own.values()):
                before = found[name].num_weights if name in found else 0
                found[name] = LeftOut(name, before + sum(own.values()), reason)
    return found


def _matrices(module: nn.Module) -> list[Tensor]:
    return [matrix for matrix in module.parameters() if matrix.ndim >= 2]


def _parts(block: Block) -> Iterator[tuple[str, str, list[Tensor]]]:
    """(path, reason to be dense, matrices) of all that a block holds, targets too."""
    dense = prunable.dense_parts(block.module)
    for name, reason in dense.items():
        yield join(block.path, name), reason, _matrices(block.module.get_submodule(name))
    for name, module in block.module.named_modules():
        if prunable.is_within(name, dense):
            continue
        for leaf, matrix in module.named_parameters(recurse=False):
            if matrix.ndim >= 2:
                yield _judge(block, name, module, leaf, matrix)


def _judge(
    block: Block, name: str, layer: nn.Module, leaf: str, matrix: Tensor
) -> tuple[str, str, list[Tensor]]:
    path = join(block.path, name)
    if leaf == "weight" and kind_of(layer):
        is_per_head = prunable.is_per_head(name, layer)
        return path, prunable.PER_HEAD if is_per_head else NOT_CHOSEN, [matrix]
    if isinstance(layer, (*CONVOLUTIONS, *_TRANSPOSED)):
        return path, MIXES, [matrix]
    if isinstance(layer, (nn.Linear, ParametrizationList)):
        return path, PACKED, [matrix]
    return join(path, leaf), f"a raw parameter of {type(layer).__name__}, not of a Linear", [matrix]
