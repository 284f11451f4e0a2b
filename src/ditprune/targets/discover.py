"""Which layers of a denoiser does a run prune? The matrices in its blocks that globs choose."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from fnmatch import fnmatchcase

from torch import nn

from ditprune.errors import ModelError, TargetError, did_you_mean
from ditprune.targets import exceptions
from ditprune.targets.blocks import Block, find_blocks
from ditprune.targets.coverage import Target, blocked, prunable
from ditprune.targets.lists import join
from ditprune.targets.matrix import matrix_shape
from ditprune.targets.refused import refuse_fused, refuse_sparse
from ditprune.targets.writable import QUANTISED, packed_size, tied

__all__ = ["Target", "discover", "role_of", "select"]


def discover(
    denoiser: nn.Module, auxiliary: bool = False, blocks: Sequence[str] = ()
) -> dict[str, Target]:
    """Every matrix inside the trunk's blocks, by name, in module order.

    Works on the meta device.

    Args:
        auxiliary: adds the matrices in blocks outside the trunk.
        blocks: globs over module paths that say which modules are the blocks, as in
            `"double_blocks.*"`; by default they are found by their structure.

    Raises:
        ModelError: there is no transformer block, blocks call fused copies of projections, or
            layers run sparse.
        TargetError: a glob matches no module, or all of them together no layer to prune.
    """
    refuse_sparse(denoiser)
    found_blocks = find_blocks(denoiser, blocks)
    if not found_blocks:
        _refuse_packed(denoiser)
        raise ModelError(
            f"{type(denoiser).__name__}: no transformer blocks found{_unlike_linears(denoiser)}; "
            "expected a ModuleList whose items hold attention and Linears; pass the denoiser, "
            "not the pipeline, or say where its blocks are (--blocks 'layers.*')"
        )
    shared = tied(denoiser, found_blocks)
    targets = _targets_in(found_blocks, auxiliary, shared)
    if not targets:
        _refuse_all(denoiser, found_blocks, shared)
    if blocks and not targets:
        raise TargetError(
            f"--blocks '{' '.join(blocks)}': no layer to prune in the {len(found_blocks)} modules "
            f"of {type(denoiser).__name__} that match, first {found_blocks[0].path}; name modules "
            "that hold Linears"
        )
    order = {name: i for i, (name, _) in enumerate(denoiser.named_modules())}
    return dict(sorted(targets.items(), key=lambda item: order[item[0]]))


def _refuse_all(denoiser: nn.Module, blocks: Sequence[Block], shared: Mapping[int, str]) -> None:
    """Raises ModelError where the weight of no layer may be written."""
    reasons = blocked(blocks, shared)
    if reasons and set(reasons.values()) == {QUANTISED}:
        raise _quantised(denoiser, list(reasons))
    if reasons:
        first, reason = next(iter(reasons.items()))
        raise ModelError(
            f"{type(denoiser).__name__}: none of the {len(reasons)} layers in its blocks can be "
            f"pruned; {first}: {reason}"
        )


def _unlike_linears(denoiser: nn.Module) -> str:
    """A clause that names classes which seem to be Linears and are none."""
    names = {
        type(layer).__name__
        for layer in denoiser.modules()
        if re.search("linear", type(layer).__name__, re.IGNORECASE)
        and not isinstance(layer, nn.Linear)
        and any(parameter.ndim == 2 for parameter in layer.parameters(recurse=False))
    }
    if not names:
        return ""
    return (
        f" ({', '.join(sorted(names))} are no nn.Linear; load the model with nn.Linear in their "
        "place, without parallel layers)"
    )


def _refuse_packed(denoiser: nn.Module) -> None:
    """Raises ModelError where there are quantised layers in the place of Linears."""
    packed = [name for name, layer in denoiser.named_modules() if packed_size(layer)]
    if packed:
        raise _quantised(denoiser, packed)


def _quantised(denoiser: nn.Module, names: Sequence[str]) -> ModelError:
    return ModelError(
        f"{type(denoiser).__name__}: all layers are quantised that could be pruned "
        f"({len(names)}, first {names[0]}); load the model without quantisation, prune first, "
        "then quantise"
    )


def _targets_in(
    blocks: Sequence[Block], auxiliary: bool, tied_layers: Collection[int]
) -> dict[str, Target]:
    """The targets, block by block; a weight that layers share counts once."""
    targets: dict[str, Target] = {}
    shared: set[int] = set()
    for block in blocks:
        if block.auxiliary and not auxiliary:
            continue
        refuse_fused(block.module, block.path)
        for name, layer, kind in prunable(block.module, tied_layers):
            weight = layer.get_parameter("weight")
            if id(weight) in shared:
                continue
            shared.add(id(weight))
            path = join(block.path, name)
            targets[path] = Target(
                path,
                matrix_shape(weight.shape),
                role_of(name),
                block.path,
                block.depth,
                kind=kind,
                auxiliary=block.auxiliary,
            )
    return targets


def role_of(name: str) -> str:
    """What a layer does, by its path below its block."""
    for role, pattern in exceptions.ROLES:
        if pattern.search(name.lower()):
            return role
    return "other"


def select(
    targets: dict[str, Target], include: Sequence[str] = (), exclude: Sequence[str] = ()
) -> dict[str, Target]:
    """The targets that match any `include` glob (all, if none is given) and no `exclude` glob.

    Raises TargetError if a pattern matches nothing, or if no target is left.
    """
    for option, patterns in (("include", include), ("exclude", exclude)):
        for pattern in patterns:
            if not any(fnmatchcase(name, pattern) for name in targets):
                raise TargetError(
                    f"--{option} '{pattern}' matches none of {len(targets)} targets; "
                    f"{did_you_mean(pattern, _leaf_patterns(targets))}"
                )
    chosen = {
        name: target
        for name, target in targets.items()
        if (not include or any(fnmatchcase(name, p) for p in include))
        and not any(fnmatchcase(name, p) for p in exclude)
    }
    if not chosen:
        raise TargetError(
            f"include and exclude leave none of {len(targets)} targets; loosen the patterns"
        )
    return chosen


def _leaf_patterns(targets: dict[str, Target]) -> set[str]:
    """Patterns to propose: the path of each layer below its block."""
    return {"*." + target.name.removeprefix(f"{target.block}.") for target in targets.values()}
