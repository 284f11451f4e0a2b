"""Which layers of a denoiser are pruned: the matrices inside its transformer blocks."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import nn

from ditprune.errors import ModelError
from ditprune.targets import exceptions
from ditprune.targets.blocks import find_blocks, join
from ditprune.targets.matrix import matrix_shape
from ditprune.targets.prunable import prunable
from ditprune.targets.refused import refuse_fused, refuse_sparse


@dataclass(frozen=True)
class Target:
    """A layer to prune: a Linear, or a pointwise convolution.

    Args:
        name: its path in the denoiser; its weight is `name + ".weight"`.
        shape: (C_out, C_in), whatever the weight's own shape; `matrix.as_matrix` is the view.
        role: modulation, attention, mlp or other.
        block: the path of the block it is in.
        depth: the block's place in its list, from 0.
        kind: `linear` or `convolution`.
        auxiliary: in a block outside the trunk (text refiner, perceiver).
    """

    name: str
    shape: tuple[int, int]
    role: str
    block: str
    depth: int
    kind: str = field(default="linear", kw_only=True)
    auxiliary: bool = field(default=False, kw_only=True)

    @property
    def num_weights(self) -> int:
        return self.shape[0] * self.shape[1]


def discover(denoiser: nn.Module, auxiliary: bool = False) -> dict[str, Target]:
    """Every matrix inside the trunk's blocks, by name, in module order.

    Works on the meta device. `auxiliary` adds those of the blocks outside the trunk.

    Raises ModelError where no transformer block is found, or fused copies of projections are, or
    layers that run sparse.
    """
    refuse_sparse(denoiser)
    blocks = find_blocks(denoiser)
    if not blocks:
        raise ModelError(
            f"{type(denoiser).__name__}: no transformer blocks found; expected a ModuleList whose "
            "items hold attention and Linears; pass the denoiser, not the pipeline"
        )
    targets: dict[str, Target] = {}
    seen: set[int] = set()
    for block in blocks:
        if block.auxiliary and not auxiliary:
            continue
        refuse_fused(block.module, block.path)
        for name, layer, kind in prunable(block.module):
            weight = layer.get_parameter("weight")
            if id(weight) in seen:
                continue
            seen.add(id(weight))
            full = join(block.path, name)
            targets[full] = Target(
                full,
                matrix_shape(weight.shape),
                role_of(name),
                block.path,
                block.depth,
                kind=kind,
                auxiliary=block.auxiliary,
            )
    order = {name: i for i, (name, _) in enumerate(denoiser.named_modules())}
    return dict(sorted(targets.items(), key=lambda item: order[item[0]]))


def role_of(name: str) -> str:
    """What a layer does, by its path below its block."""
    for role, pattern in exceptions.ROLES:
        if pattern.search(name.lower()):
            return role
    return "other"
